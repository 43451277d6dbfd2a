"""On-demand prices from the AWS Price List API: the documents it answers with, read into USD per hour by type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)

from markserve.errors import (
    ConfigurationError,
    CredentialsRefused,
    DependencyUnavailable,
    MarkserveError,
    PermissionDenied,
    Throttled,
)

if TYPE_CHECKING:
    from mypy_boto3_pricing import PricingClient

SERVED_FROM = "us-east-1"
"""The Price List API has few endpoints; this one knows the prices of every region."""
LINUX_ON_DEMAND: Mapping[str, str] = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
    "locationType": "AWS Region",
}
"""Without these, a type has a product per operating system, licence, tenancy, kind of reservation, and for each Local
Zone of the region, which is dearer."""
PAGE_SIZE = 100

THROTTLED = frozenset({"RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequestsException"})
UNAVAILABLE = frozenset({"InternalError", "InternalErrorException", "InternalFailure", "ServiceUnavailable", "Unavailable"})
EXPIRED_PAGE = frozenset({"ExpiredNextTokenException", "InvalidNextTokenException"})
DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
NOT_AUTHENTICATED = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
NO_CREDENTIALS = (CredentialRetrievalError, NoCredentialsError, PartialCredentialsError, SSOError, TokenRetrievalError)


@dataclass(frozen=True, kw_only=True)
class PriceList:
    """What the API said."""

    usd_per_hour: Mapping[str, float]
    published_on: str
    """Date of the newest list among the documents; empty where there was none."""


class _Dimension(msgspec.Struct, rename="camel"):
    unit: str
    price_per_unit: dict[str, str]


class _Term(msgspec.Struct, rename="camel"):
    price_dimensions: dict[str, _Dimension]


class _Terms(msgspec.Struct):
    on_demand: dict[str, _Term] = msgspec.field(name="OnDemand", default_factory=dict)


class _Attributes(msgspec.Struct, rename="camel"):
    instance_type: str = ""


class _Product(msgspec.Struct):
    attributes: _Attributes


class _Document(msgspec.Struct, rename="camel"):
    product: _Product
    terms: _Terms = msgspec.field(default_factory=_Terms)
    publication_date: str = ""


class AwsPriceList:
    """The Price List API's `GetProducts`, for EC2."""

    def __init__(self, client: PricingClient) -> None:
        self._client = client

    def on_demand(self, region: str, *, tell: Callable[[int], None] = lambda _: None) -> PriceList:
        """Read the price of every type with Linux, shared tenancy and no software in `region`.

        A region is some dozen pages, so it is read whole: fewer calls than one per type.

        Parameters
        ----------
        tell
            Told how many documents were read, after each page.

        Raises
        ------
        CredentialsRefused, PermissionDenied, Throttled, DependencyUnavailable
            As AWS answered, or did not; also for a document of another shape than documented.
        """
        prices: dict[str, float] = {}
        published_on = ""
        for read, text in enumerate(self._documents(region), start=1):
            document = parse(text)
            published_on = max(published_on, document.publication_date[:10])
            name, price = document.product.attributes.instance_type, hourly_usd(document)
            if name and price is not None:
                # Should two products share a type, the dearer one: a plan must not cost more than it says.
                prices[name] = max(price, prices.get(name, 0.0))
            if read % PAGE_SIZE == 0:
                tell(read)
        return PriceList(usd_per_hour=prices, published_on=published_on)

    def _documents(self, region: str) -> Iterator[str]:
        wanted = {"regionCode": region, **LINUX_ON_DEMAND}
        pages = self._client.get_paginator("get_products").paginate(
            ServiceCode="AmazonEC2",
            FormatVersion="aws_v1",
            Filters=[{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()],
            PaginationConfig={"PageSize": PAGE_SIZE},
        )
        try:
            for page in pages:
                yield from page["PriceList"]
        except (ClientError, BotoCoreError) as error:
            raise translate(error, "the Price List API") from error


def parse(text: str) -> _Document:
    """Read one document, which the API sends as text within its JSON."""
    try:
        return msgspec.json.decode(text, type=_Document)
    except msgspec.DecodeError as error:
        raise DependencyUnavailable(f"the Price List API sent a document that is not as documented: {error}") from error


def hourly_usd(document: _Document) -> float | None:
    """Return the on-demand price of an hour, or None where there is none above zero.

    Reservations, upfront fees and other currencies are passed over; so are the zero prices of products that something
    else pays for.

    >>> hourly_usd(parse('{"product": {"attributes": {"instanceType": "c5.large"}}}')) is None
    True
    """
    dimensions = (d for term in document.terms.on_demand.values() for d in term.price_dimensions.values())
    try:
        prices = [float(d.price_per_unit["USD"]) for d in dimensions if d.unit == "Hrs" and "USD" in d.price_per_unit]
    except ValueError as error:
        raise DependencyUnavailable(f"the Price List API sent a price that is no number: {error}") from error
    return max((price for price in prices if price > 0), default=None)


def translate(error: ClientError | BotoCoreError, service: str) -> MarkserveError:
    """Say what a failed call means, in one line."""
    if not isinstance(error, ClientError):
        said = " ".join(str(error).split())
        if isinstance(error, NO_CREDENTIALS):
            return CredentialsRefused(f"no AWS credentials: {said}")
        return DependencyUnavailable(f"{service} did not answer: {said}")
    code = str(error.response.get("Error", {}).get("Code", ""))
    said = " ".join(f"{code}: {error.response.get('Error', {}).get('Message', '')}".split())
    if code in NOT_AUTHENTICATED:
        return CredentialsRefused(f"{service} did not accept the credentials: {said}")
    if code in DENIED:
        return PermissionDenied(f"{service} refused {error.operation_name}: {said}")
    if code in THROTTLED:
        return Throttled(f"{service} throttled {error.operation_name}: {said}")
    if code in UNAVAILABLE | EXPIRED_PAGE or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return DependencyUnavailable(f"{service} failed: {said}")
    return ConfigurationError(f"{service} refused {error.operation_name}: {said}")
