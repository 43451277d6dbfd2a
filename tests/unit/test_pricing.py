"""The price list and EC2's market as the adapters read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.stub import Stubber
from moto import mock_aws

from markserve.adapters.pricing import AwsPriceList, hourly_usd, parse, translate
from markserve.adapters.pricing_ec2 import Ec2Market
from markserve.catalog import load_catalog
from markserve.core.catalog import InstanceSpec, category_of
from markserve.errors import ConfigurationError, CredentialsRefused, DependencyUnavailable, PermissionDenied, Throttled
from tests.contract.conftest import session
from tests.unit.price_documents import a_price_document

NOW_S = 1_764_000_000.0
NOW = datetime.fromtimestamp(NOW_S, tz=UTC)

Stubbed = Callable[[str], tuple[Any, Stubber]]


@pytest.fixture
def stubbed() -> Iterator[Stubbed]:
    """Clients that answer what they were told, once, and only to the request they were told of."""
    stubs = []

    def make(service: str) -> tuple[Any, Stubber]:
        client = session().client(service)  # type: ignore[call-overload]
        stub = Stubber(client)
        stub.activate()
        stubs.append(stub)
        return client, stub

    yield make
    for stub in stubs:
        stub.assert_no_pending_responses()


def asked_for_products(region: str, **more: object) -> dict[str, object]:
    fields = {
        "regionCode": region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
        "marketoption": "OnDemand",
        "locationType": "AWS Region",
    }
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()]
    return {"ServiceCode": "AmazonEC2", "FormatVersion": "aws_v1", "Filters": filters, "MaxResults": 100, **more}


def products(*documents: str, **more: str) -> dict[str, object]:
    return {"FormatVersion": "aws_v1", "PriceList": list(documents), **more}


# --- the price list -------------------------------------------------------------------------------------------------


def test_price_list_is_read_over_all_pages_with_the_newest_date(stubbed: Stubbed) -> None:
    client, stub = stubbed("pricing")
    first = products(a_price_document("c5.large"), a_price_document("g4dn.xlarge", "0.5260000000"), NextToken="second")
    second = products(a_price_document("m5.large", "0.0960000000", published="2026-11-21T00:00:00Z"))
    stub.add_response("get_products", first, asked_for_products("eu-west-1"))
    stub.add_response("get_products", second, asked_for_products("eu-west-1", NextToken="second"))

    listed = AwsPriceList(client).on_demand("eu-west-1")

    assert listed.usd_per_hour == {"c5.large": 0.085, "g4dn.xlarge": 0.526, "m5.large": 0.096}
    assert listed.published_on == "2026-11-21"


def test_price_list_leaves_out_what_has_no_price_and_takes_the_dearer_of_two(stubbed: Stubbed) -> None:
    client, stub = stubbed("pricing")
    documents = [
        a_price_document("free.large", "0.0000000000"),
        a_price_document("unpriced.large", None),
        a_price_document("c5.large", "0.09"),
        a_price_document("c5.large", "0.08"),
    ]
    stub.add_response("get_products", products(*documents))

    assert AwsPriceList(client).on_demand("us-east-1").usd_per_hour == {"c5.large": 0.09}


def test_price_list_tells_how_far_it_is_after_each_page(stubbed: Stubbed) -> None:
    client, stub = stubbed("pricing")
    page = [a_price_document(f"c5.{n}xlarge") for n in range(100)]
    stub.add_response("get_products", products(*page, NextToken="2"))
    stub.add_response("get_products", products(*page, NextToken="3"))
    stub.add_response("get_products", products())
    told: list[int] = []

    AwsPriceList(client).on_demand("us-east-1", tell=told.append)

    assert told == [100, 200]


@pytest.mark.parametrize(("currency", "unit"), [("CNY", "Hrs"), ("USD", "Quantity")])
def test_price_counts_only_when_it_is_dollars_by_the_hour(currency: str, unit: str) -> None:
    assert hourly_usd(parse(a_price_document("c5.large", "1.0", currency=currency, unit=unit))) is None


@pytest.mark.parametrize("text", ["not json", "[]", '{"product": {}}', '{"product": {"attributes": {}}, "terms": {"OnDemand": {"x": {}}}}'])
def test_document_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(DependencyUnavailable, match="not as documented"):
        parse(text)


def test_price_that_is_no_number_is_refused() -> None:
    with pytest.raises(DependencyUnavailable, match="no number"):
        hourly_usd(parse(a_price_document("c5.large", "cheap")))


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("AccessDeniedException", 400, PermissionDenied),
        ("UnauthorizedOperation", 403, PermissionDenied),
        ("UnrecognizedClientException", 400, CredentialsRefused),
        ("AuthFailure", 401, CredentialsRefused),
        ("ExpiredTokenException", 400, CredentialsRefused),
        ("ThrottlingException", 400, Throttled),
        ("InternalErrorException", 500, DependencyUnavailable),
        ("ExpiredNextTokenException", 400, DependencyUnavailable),
        ("Mystery", 503, DependencyUnavailable),
        ("InvalidParameterException", 400, ConfigurationError),
    ],
)
def test_refusal_says_what_to_do_next_when_aws_answers_with_a_code(
    code: str, status: int, error: type[Exception], stubbed: Stubbed
) -> None:
    client, stub = stubbed("pricing")
    stub.add_client_error("get_products", code, "a\nmessage", http_status_code=status)

    with pytest.raises(error, match=f"{code}: a message") as raised:
        AwsPriceList(client).on_demand("us-east-1")

    assert type(raised.value) is error


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (NoCredentialsError(), CredentialsRefused),
        (PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), CredentialsRefused),
        (EndpointConnectionError(endpoint_url="https://api.pricing.us-east-1.amazonaws.com"), DependencyUnavailable),
        (ConnectTimeoutError(endpoint_url="https://api.pricing.us-east-1.amazonaws.com"), DependencyUnavailable),
    ],
)
def test_failure_says_what_to_do_next_when_aws_was_not_reached(cause: BotoCoreError, error: type[Exception]) -> None:
    assert type(translate(cause, "EC2")) is error


def test_ec2_translates_its_refusals_too(stubbed: Stubbed) -> None:
    client, stub = stubbed("ec2")
    stub.add_client_error("describe_instance_types", "UnauthorizedOperation", "no", http_status_code=403)

    with pytest.raises(PermissionDenied, match="EC2 refused DescribeInstanceTypes: UnauthorizedOperation: no") as raised:
        Ec2Market(client).specs()

    assert isinstance(raised.value.__cause__, ClientError)


# --- EC2's market ---------------------------------------------------------------------------------------------------


def described(name: str, **more: object) -> dict[str, object]:
    return {
        "InstanceType": name,
        "VCpuInfo": {"DefaultVCpus": 4},
        "MemoryInfo": {"SizeInMiB": 8192},
        "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
        **more,
    }


def test_specs_are_read_over_all_pages(stubbed: Stubbed) -> None:
    client, stub = stubbed("ec2")
    first = {"InstanceTypes": [described("c5.xlarge")], "NextToken": "second"}
    stub.add_response("describe_instance_types", first, {"Filters": [], "MaxResults": 100})
    last = {"InstanceTypes": [described("c9.xlarge", MemoryInfo={"SizeInMiB": 7680})]}
    stub.add_response("describe_instance_types", last, {"Filters": [], "MaxResults": 100, "NextToken": "second"})
    told: list[int] = []

    specs = Ec2Market(client).specs(tell=told.append)

    assert specs == {
        "c5.xlarge": InstanceSpec(instance_type="c5.xlarge", vcpu=4, memory_gib=8.0, arch="x86_64"),
        "c9.xlarge": InstanceSpec(instance_type="c9.xlarge", vcpu=4, memory_gib=7.5, arch="x86_64"),
    }
    assert told == [1, 2]


def test_specs_count_a_share_of_a_gpu_as_one_and_other_makers_as_none(stubbed: Stubbed) -> None:
    client, stub = stubbed("ec2")
    types = [
        described("g6f.large", GpuInfo={"Gpus": [{"Name": "L4", "Manufacturer": "NVIDIA", "Count": 0}]}),
        described("g4ad.xlarge", GpuInfo={"Gpus": [{"Name": "Radeon Pro V520", "Manufacturer": "AMD", "Count": 1}]}),
        described("inf9.xlarge", NeuronInfo={"NeuronDevices": [{"Name": "Inferentia3", "Count": 1}]}),
        described("trn1.2xlarge", NeuronInfo={"NeuronDevices": [{"Name": "Trainium", "Count": 1}]}),
    ]
    stub.add_response("describe_instance_types", {"InstanceTypes": types})

    specs = Ec2Market(client).specs()

    assert (specs["g6f.large"].gpu, specs["g6f.large"].gpu_count) == ("L4", 1)
    assert (specs["g4ad.xlarge"].gpu, specs["g4ad.xlarge"].gpu_count) == (None, 0)
    assert [category_of(spec) for spec in specs.values()] == ["gpu", None, "inferentia", None]


def test_specs_of_named_types_are_asked_for_by_the_hundred_and_unknown_ones_are_missing(stubbed: Stubbed) -> None:
    client, stub = stubbed("ec2")
    names = [f"c5.{n}xlarge" for n in range(150)]
    for chunk in (names[:100], names[100:]):
        filters = [{"Name": "instance-type", "Values": chunk}]
        stub.add_response("describe_instance_types", {"InstanceTypes": [described(chunk[0])]}, {"Filters": filters, "MaxResults": 100})

    assert list(Ec2Market(client).specs(names)) == ["c5.0xlarge", "c5.100xlarge"]


def test_specs_of_the_shipped_types_are_as_shipped_where_the_emulated_ec2_has_them() -> None:
    entries = {entry.instance_type: entry for entry in load_catalog().entries}

    with mock_aws():
        specs = Ec2Market(session().client("ec2")).specs([*entries, "c99.huge"])

    assert len(specs) >= 80
    for name, spec in specs.items():
        entry = entries[name]
        assert (spec.vcpu, spec.memory_gib, spec.arch) == (entry.vcpu, entry.memory_gib, entry.arch), name
        assert (spec.gpu, spec.gpu_count, category_of(spec)) == (entry.gpu, entry.gpu_count, entry.category), name


def test_every_type_of_the_emulated_ec2_is_read() -> None:
    with mock_aws():
        specs = Ec2Market(session().client("ec2")).specs()

    assert len(specs) > 1000
    assert specs["m3.large"].arch == "x86_64"
    assert category_of(specs["i4i.large"]) is None
    assert category_of(specs["mac2.metal"]) is None


def pool(name: str, zone: str, price: str, *, age_s: float = 0.0) -> dict[str, object]:
    at = datetime.fromtimestamp(NOW_S - age_s, tz=UTC)
    return {"InstanceType": name, "AvailabilityZone": zone, "SpotPrice": price, "ProductDescription": "Linux/UNIX", "Timestamp": at}


def test_spot_prices_are_the_latest_by_type_and_zone_over_all_pages(stubbed: Stubbed) -> None:
    client, stub = stubbed("ec2")
    asked = {"ProductDescriptions": ["Linux/UNIX"], "StartTime": NOW, "InstanceTypes": ["c5.large", "m5.large"], "MaxResults": 1000}
    newer = [pool("c5.large", "us-east-1a", "0.034000"), pool("m5.large", "us-east-1a", "0.04", age_s=9.0)]
    older = [pool("c5.large", "us-east-1a", "0.050000", age_s=60.0), pool("c5.large", "us-east-1b", "0.036000")]
    stub.add_response("describe_spot_price_history", {"SpotPriceHistory": newer, "NextToken": "second"}, asked)
    stub.add_response("describe_spot_price_history", {"SpotPriceHistory": older, "NextToken": ""}, {**asked, "NextToken": "second"})

    prices = Ec2Market(client).spot_usd_per_hour(["c5.large", "m5.large"], now_s=NOW_S)

    assert prices == {("c5.large", "us-east-1a"): 0.034, ("c5.large", "us-east-1b"): 0.036, ("m5.large", "us-east-1a"): 0.04}


def test_spot_prices_of_a_region_are_asked_for_without_names(stubbed: Stubbed) -> None:
    client, stub = stubbed("ec2")
    asked = {"ProductDescriptions": ["Linux/UNIX"], "StartTime": NOW, "MaxResults": 1000}
    stub.add_response("describe_spot_price_history", {"SpotPriceHistory": [pool("c5.large", "a", "0.03")]}, asked)
    told: list[int] = []

    assert Ec2Market(client).spot_usd_per_hour(now_s=NOW_S, tell=told.append) == {("c5.large", "a"): 0.03}
    assert told == [1]
