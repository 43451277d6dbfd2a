"""`markserve catalog`: what it shows, and a refresh from an emulated EC2 and a price list served over HTTP."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from moto import mock_aws
from moto.core.responses import ActionResult
from moto.ec2.responses.spot_instances import SpotInstances
from typer.testing import CliRunner, Result

from cli.main import app
from local.embedded_ec2 import price_spot_history
from markserve.catalog import Catalog, load_catalog
from tests.unit.price_documents import a_price_document

LISTED = {entry.instance_type: entry.price_usd_per_hour for entry in load_catalog().entries}
PAGE = 50
"""Of the served price list: the shipped types fill two."""


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def catalog_command(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ("catalog", *arguments))
    assert "Traceback" not in result.output
    return result


def assert_fails(result: Result, code: int, *said: str) -> None:
    assert result.exit_code == code, result.output
    for text in said:
        assert text in result.stderr
    assert result.stderr.count("error:") == 1
    assert result.stdout == ""


# --- show -----------------------------------------------------------------------------------------------------------


def test_show_lists_every_type_with_source_and_date() -> None:
    result = catalog_command("show")

    assert result.exit_code == 0
    assert all(name in result.stdout for name in LISTED)
    assert "4 x T4" in result.stdout
    row = next(line for line in result.stdout.splitlines() if " c5.large " in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "c5.large",
        "2",
        "4",
        "x86_64",
        "-",
        "0.0850",
        "0.0349",
        "<5%",
    ]
    assert "on demand, 2026-07-20: AWS on-demand price list" in result.stdout
    assert "spot, 2025-06-28: AWS Spot Instance Advisor" in result.stdout


def test_show_filters_by_category_and_architecture() -> None:
    result = catalog_command("show", "--category", "gpu", "--arch", "arm64", "--json")

    shown = msgspec.json.decode(result.stdout, type=Catalog)
    assert [entry.instance_type for entry in shown.entries] == ["g5g.xlarge"]
    assert shown.prices_source == load_catalog().prices_source


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--category", "quantum"), "there is no category 'quantum'"),
        (("--arch", "amd64"), "there is no architecture 'amd64'"),
    ],
)
def test_show_refuses_an_unknown_filter_and_names_the_known(arguments: tuple[str, ...], said: str) -> None:
    assert_fails(catalog_command("show", *arguments), 2, said, "next:  known: ")


# --- refresh, without AWS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--types", "c5.large", "--all"), "--types and --all exclude each other"),
        (("--types", "c5"), "'c5': not an instance type"),
        (("--types", " , "), "' , ': not an instance type"),
        (("--region", "us-east-99"), "there is no region 'us-east-99'"),
        (("--out", "no/such/folder/catalog.json"), "there is no folder no/such/folder"),
        (("--out", "."), ". is a folder"),
    ],
)
def test_refresh_refuses_bad_usage_before_it_asks_anybody(arguments: tuple[str, ...], said: str) -> None:
    assert_fails(catalog_command("refresh", *arguments), 2, said)


def test_refresh_says_how_to_set_credentials_when_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    assert_fails(catalog_command("refresh"), 1, "there are no AWS credentials", "next:  set AWS_PROFILE, or AWS_ACCESS_KEY_ID")


def test_refresh_says_so_when_the_profile_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    assert_fails(catalog_command("refresh"), 1, "The config profile (nobody) could not be found", "next:  set AWS_PROFILE")


def test_refresh_says_what_to_check_when_aws_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    assert_fails(
        catalog_command("refresh"), 1, "EC2 did not answer: Could not connect", "next:  check the network, proxy and AWS_ENDPOINT_URL"
    )


# --- refresh, against an emulated AWS -------------------------------------------------------------------------------


class PriceServer:
    """Serves documents as the Price List API does, page by page; or an error, a number of times."""

    def __init__(self) -> None:
        self.documents = [a_price_document(name, f"{price:.10f}") for name, price in LISTED.items()]
        self.errors: list[tuple[int, str, str]] = []
        self.asked: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(request)
                if server.errors:
                    status, code, message = server.errors.pop(0)
                    self.reply(status, {"__type": code, "Message": message})
                    return
                start = int(request.get("NextToken", 0))
                answer: dict[str, Any] = {"FormatVersion": "aws_v1", "PriceList": server.documents[start : start + PAGE]}
                if start + PAGE < len(server.documents):
                    answer["NextToken"] = str(start + PAGE)
                self.reply(200, answer)

            def reply(self, status: int, value: dict[str, Any]) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Stay silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> Iterator[PriceServer]:
    """A price list of the shipped types at the shipped prices, and an EC2 whose spot prices are the typical ones."""
    typical = {entry.instance_type: entry.typical_spot_usd_per_hour for entry in load_catalog().entries}
    unpriced = SpotInstances.describe_spot_price_history

    def priced(self: Any) -> Any:
        return ActionResult({"SpotPriceHistory": price_spot_history(unpriced(self).result["SpotPriceHistory"], typical)})

    monkeypatch.setattr(SpotInstances, "describe_spot_price_history", priced)
    served = PriceServer()
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", served.url)
    with mock_aws():
        yield served
    served.server.shutdown()
    served.server.server_close()


def test_refresh_writes_the_shipped_catalog_again_when_nothing_changed(prices: PriceServer, tmp_path: Path) -> None:
    result = catalog_command("refresh", "--out", str(tmp_path / "new.json"))

    assert result.exit_code == 0, result.output
    written = msgspec.json.decode((tmp_path / "new.json").read_bytes(), type=Catalog)
    old = {entry.instance_type: entry for entry in load_catalog().entries}
    assert len(written.entries) >= 80
    assert all(entry.price_usd_per_hour == old[entry.instance_type].price_usd_per_hour for entry in written.entries)
    assert all(entry.spot_saving == pytest.approx(old[entry.instance_type].spot_saving, abs=1e-4) for entry in written.entries)
    assert all(entry.interruption_band == old[entry.instance_type].interruption_band for entry in written.entries)
    assert f"{len(written.entries)} types written to {tmp_path / 'new.json'}" in result.stdout
    assert "  none\n" in result.stdout  # no changes
    assert os.listdir(tmp_path) == ["new.json"]
    assert [request.get("NextToken") for request in prices.asked] == [None, "50"]


def test_refresh_tells_what_changed_and_writes_nothing_unasked(prices: PriceServer) -> None:
    prices.documents = [a_price_document("c5.large", "0.1020000000"), a_price_document("c8i.large", "0.09")]

    result = catalog_command("refresh", "--types", "c5.large,c8i.large,g5.xlarge,c99.huge")

    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if "on demand" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["c5.large", "on demand", "$0.085/h", "$0.102/h", "+20.0%"]
    assert "spot saving" in result.stdout  # the spot price stayed, so the saving grew
    assert "new: c8i.large" in result.stdout
    assert "gone: g5.xlarge" in result.stdout
    assert "left out, no on-demand Linux price in the price list: g5.xlarge" in result.stdout
    assert "left out, not offered in us-east-1: c99.huge" in result.stdout
    assert "no spot capacity now, saving set to 0: c8i.large" in result.stdout
    assert "nothing written: give --out FILE" in result.stdout


def test_refresh_prints_json_alone(prices: PriceServer) -> None:
    result = catalog_command("refresh", "--types", "c5.large,c99.huge", "--json")

    said = json.loads(result.stdout)
    assert [entry["instance_type"] for entry in said["catalog"]["entries"]] == ["c5.large"]
    assert said["left_out"] == [{"instance_type": "c99.huge", "reason": "not offered in us-east-1"}]
    assert said["changes"] == {"prices": [], "spot_savings": [], "specs": [], "new": [], "gone": []}
    assert said["written_to"] is None


def test_refresh_takes_all_that_a_region_offers(prices: PriceServer) -> None:
    prices.documents = [a_price_document(name, "1.0") for name in ("c5.large", "c9g.large", "i4i.large")]

    said = json.loads(catalog_command("refresh", "--all", "--region", "eu-west-1", "--json").stdout)

    assert [entry["instance_type"] for entry in said["catalog"]["entries"]] == ["c5.large", "c9g.large"]
    assert said["catalog"]["region"] == "eu-west-1"
    assert {"instance_type": "i4i.large", "reason": "fits none of the categories"} in said["left_out"]
    assert {"Field": "regionCode", "Type": "TERM_MATCH", "Value": "eu-west-1"} in prices.asked[0]["Filters"]
    assert "p2.xlarge" in said["changes"]["gone"]


def test_refresh_warns_that_another_regions_bands_are_unknown(prices: PriceServer) -> None:
    result = catalog_command("refresh", "--region", "eu-west-1", "--types", "c5.large")

    assert "interruption bands are those of us-east-1: no API has them" in result.stdout


def test_refresh_fails_when_no_type_is_left(prices: PriceServer, tmp_path: Path) -> None:
    out_file = tmp_path / "catalog.json"

    assert_fails(
        catalog_command("refresh", "--types", "c99.huge", "--out", str(out_file)), 2, "no instance type is left: not offered in us-east-1"
    )
    assert not out_file.exists()


def test_refresh_says_why_when_the_file_cannot_be_written(prices: PriceServer, tmp_path: Path) -> None:
    (tmp_path / "catalog.json").write_text("as it was")
    (tmp_path / "catalog.json.part").mkdir()

    result = catalog_command("refresh", "--types", "c5.large", "--out", str(tmp_path / "catalog.json"))

    assert_fails(result, 2, f"{tmp_path / 'catalog.json'}: Is a directory", "next:  give another --out")
    assert (tmp_path / "catalog.json").read_text() == "as it was"


def test_refresh_says_so_on_one_line_when_a_credential_process_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\ncredential_process = sh -c 'printf \"no\\\\nluck\" >&2; exit 1'\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    result = catalog_command("refresh")

    assert_fails(result, 1, "there are no usable AWS credentials", "no luck", "next:  set AWS_PROFILE")


def test_refresh_goes_on_when_it_was_throttled_once(prices: PriceServer) -> None:
    prices.errors = [(400, "ThrottlingException", "Rate exceeded")]

    assert catalog_command("refresh", "--types", "c5.large").exit_code == 0
    assert len(prices.asked) == 3  # the refused page again, and the second page


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            (400, "AccessDeniedException", "User: arn:aws:iam::1:user/x is not authorized to perform: pricing:GetProducts"),
            ("the Price List API refused GetProducts: AccessDeniedException", "next:  have your IAM policy allow pricing:GetProducts"),
        ),
        (
            (400, "UnrecognizedClientException", "The security token included in the request is invalid."),
            ("the Price List API did not accept the credentials", "next:  set AWS_PROFILE"),
        ),
        ((400, "ThrottlingException", "Rate exceeded"), ("the Price List API throttled GetProducts", "next:  wait a minute")),
        ((500, "InternalErrorException", "sorry"), ("the Price List API failed", "next:  check the network")),
        ((400, "InvalidParameterException", "no"), ("the Price List API refused GetProducts", "next:  check --region and --types")),
    ],
)
def test_refresh_gives_each_refusal_its_next_step(
    error: tuple[int, str, str], said: tuple[str, ...], prices: PriceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    prices.errors = [error]

    assert_fails(catalog_command("refresh", "--types", "c5.large"), 1, *said)
