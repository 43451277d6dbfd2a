"""Whatever event a function is invoked with: it is served, or refused with one line that says why and nothing changed."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markserve import wiring
from markserve.errors import InvalidRequest
from markserve.messages import encode
from markserve.refusals import FACT_MAX_CHARACTERS, REASON_MAX_CHARACTERS
from tests.builders import a_drain, a_launch, a_metrics_batch, a_request, a_spot_offering, a_terminate, a_warm_up
from tests.functions.test_lifecycle import EVENTS, TUNABLES
from tests.fuzz.handlers import KEY, function, listening, written
from tests.fuzz.profiles import fuzz
from tests.fuzz.strategies import BELOW_TEXT, DEEP_TEXT, deep, objects, spoilt, values

LINE_MAX_BYTES = 1500
DENIED = {"isAuthorized": False}


def recorded(*names: str) -> list[Any]:
    return [json.loads((EVENTS / f"{name}.json").read_text()) for name in names]


def plain(message: Any) -> Any:
    return json.loads(encode(message))


WARM_UP = {"warmup": True, "model": "digits", "hold_s": 1.0}
SAMPLES: dict[str, list[Any]] = {
    "ingest": recorded("ingest_sqs"),
    "forecast": [{"schema_version": 1, "action": "forecast", "model": "digits"}, *recorded("forecast_train", "forecast_request")],
    "plan": [{"schema_version": 1, "trigger": "schedule", "model": "digits"}],
    "lifecycle": [
        *(plain(action) for action in (a_launch(), a_launch(offering=a_spot_offering()), a_drain(), a_terminate(), a_warm_up())),
        *recorded("lifecycle_state_change", "lifecycle_spot_interruption", "lifecycle_rebalance"),
        *recorded("lifecycle_instance_ready", "lifecycle_instance_drained"),
        *recorded("lifecycle_measurement_start", "lifecycle_measurement_store"),
    ],
    "spillover": [plain(a_request()), WARM_UP],
    "authorizer": recorded("authorizer_request"),
    "api": [*recorded("api_infer", "api_infer_binary", "api_async_infer"), {"warmup": True, "hold_s": 1.0}],
    "console": recorded("console_overview"),
}


def refusals_of(name: str, event: Any) -> list[logging.LogRecord]:
    """Invoke a function once, hold it to its word, and return the lines in which it refused."""
    with function(name) as invoke, listening() as lines:
        before = invoke.state()
        try:
            reply: Any = invoke(event)
        except InvalidRequest as error:
            reply = error
        refusals = [line for line in lines if line.getMessage() == "refused"]
        assert not [line for line in lines if line.exc_info], "something failed that nobody declared"
        assert all(len(line.__dict__["reason"]) <= REASON_MAX_CHARACTERS for line in refusals)
        if name == "lifecycle":
            assert len([i for i in wiring.instances().list() if i.is_alive]) <= TUNABLES.max_instances
        if name == "ingest" and isinstance(reply, dict):
            assert len(refusals) == len(reply["batchItemFailures"])
            return refusals
        is_told = isinstance(reply, InvalidRequest) or (bool(refusals) and (reply == DENIED or reply.get("statusCode") == 400))
        assert bool(refusals) == is_told
        if refusals:
            assert len(lines) == 1
            assert invoke.state() == before
        return refusals


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_sent_in_earnest_is_not_refused(name: str) -> None:
    assert [event for event in SAMPLES[name] if refusals_of(name, event)] == []


@pytest.mark.parametrize("name", SAMPLES)
@fuzz(60)
@given(data=st.data())
def test_event_is_served_or_refused_in_one_line_and_nothing_else_fails(name: str, data: st.DataObject) -> None:
    refusals_of(name, data.draw(spoilt(*SAMPLES[name]) | objects | values))


# --- what must be refused -----------------------------------------------------------------------------------------

NO_EVENT = [None, 7, math.nan, "text", [], ["measurement"], deep()]
LONG, HALF = "x" * 100_000, "\ud800"
BAD_OFFERINGS = [{"price_usd_per_hour": math.inf}, {"price_usd_per_hour": math.nan}, {"price_usd_per_hour": -1.0}, {"zone": 7}]
BAD_OFFERINGS += [{"launch_overhead_s": math.inf}, {"interruption_rate_per_hour": math.inf}, {"capacity_type": "stolen"}]
BAD_LAUNCHES = [{"count": count} for count in (0, -1, 10**9, 2**70, math.nan, math.inf, "3", None, [1], 1.5)]
BAD_LAUNCHES += [{"action_id": text} for text in ("", LONG, HALF, None)] + [{"model": LONG}, {"plan_id": LONG}, {"action": "explode"}]
BAD_IDS = ["", LONG, HALF, None, 7, ["i-1"], {"x": deep()}]
BAD_INSTANTS = [math.nan, math.inf, -math.inf, 1e300, -1.0, 10**400, "now", None]
BAD_REQUESTS = [{"schema_version": 99}, {"schema_version": "1"}, {"request_id": ""}, {"request_id": LONG}, {"model": HALF}, {"model": 7}]
BAD_REQUESTS += [{"inputs": [{"name": "image"}]}, {"inputs": deep()}, {"deadline_at_s": math.nan}, {"spill_at_s": math.inf}]
BAD_REQUESTS += [{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": "no base64!"}]}, {"output_names": HALF}]


def notification(name: str, **detail: Any) -> Any:
    (event,) = recorded(name)
    return {**event, "detail": {**event["detail"], **detail}}


LAUNCH, DRAIN, SPILLED = plain(a_launch()), plain(a_drain()), plain(a_request())
(HTTP,) = recorded("api_infer")
REFUSED: dict[str, list[Any]] = {
    "ingest": [
        *NO_EVENT,
        {"Records": 7},
        {"Records": [{}]},
        {"Records": [{"messageId": "", "body": ""}]},
        {"Records": [{"messageId": "m"}]},
    ],
    "forecast": [
        *NO_EVENT,
        *({"action": action} for action in ("destroy", LONG, None, 7, deep(), HALF)),
        *({"action": "train", "model": model} for model in (LONG, HALF, 7, ["digits"])),
        {"schema_version": 99},
        {"trigger": math.nan},
    ],
    "plan": [
        *NO_EVENT,
        *({"trigger": trigger} for trigger in ("boredom", LONG, None, 7, deep(), math.inf)),
        {"trigger": "manual", "model": LONG},
        {"trigger": "manual", "schema_version": 2},
    ],
    "lifecycle": [
        *NO_EVENT,
        {},
        {"source": "aws.ec2"},
        {"source": LONG, "detail-type": "x", "detail": {}},
        {"measurement": "start"},
        {"measurement": "start", "run_id": LONG, "model": "digits", "instance_type": "c5.large"},
        {"measurement": "start", "run_id": "run-1", "model": "none", "instance_type": "c5.large"},
        {"measurement": "start", "run_id": "run-1", "model": "digits", "instance_type": "none"},
        {"measurement": "store", "run_id": "run-1", "model": "digits", "instance_types": ["c5.large"] * 1000},
        *({**LAUNCH, **wrong} for wrong in BAD_LAUNCHES),
        *({**LAUNCH, "offering": {**LAUNCH["offering"], **wrong}} for wrong in BAD_OFFERINGS),
        *({**DRAIN, "instance_id": wrong} for wrong in BAD_IDS),
        *({**plain(a_warm_up()), "environments": wrong} for wrong in (-1, 10**9, math.nan)),
        *(notification("lifecycle_spot_interruption", **{"instance-id": wrong}) for wrong in BAD_IDS),
        *(notification("lifecycle_state_change", state=wrong) for wrong in (LONG, 7, math.nan)),
        *(notification("lifecycle_instance_ready", at_s=wrong) for wrong in BAD_INSTANTS),
        *(notification("lifecycle_instance_drained", instance_id=wrong) for wrong in BAD_IDS),
        notification("lifecycle_instance_ready", schema_version=2),
        notification("lifecycle_instance_drained", schema_version=2),
    ],
    "spillover": [
        *NO_EVENT,
        {},
        {"warmup": True},
        *({**WARM_UP, "hold_s": wrong} for wrong in (math.nan, math.inf, -1.0, 1e9, "long", None)),
        *({**WARM_UP, "model": wrong} for wrong in (None, 7, LONG, HALF)),
        {**WARM_UP, "warmup": "yes"},
        *({**SPILLED, **wrong} for wrong in BAD_REQUESTS),
        *({**SPILLED, "arrival_at_s": wrong} for wrong in (math.nan, math.inf, 1e300, 10**400, "now")),
    ],
    "authorizer": [*NO_EVENT, *({"headers": wrong} for wrong in (7, "x-api-key", ["x-api-key"], {"x-api-key": 7}, {"x-api-key": HALF}))],
    "api": [
        *NO_EVENT,
        {},
        {"Records": []},
        {"warmup": True, "hold_s": math.inf},
        *({**HTTP, "headers": wrong} for wrong in (7, ["x"], {"prefer": deep()})),
        *({**HTTP, "body": wrong, "isBase64Encoded": True} for wrong in ("no base64!", 7, ["x"])),
        *({**HTTP, "requestContext": {**HTTP["requestContext"], "timeEpoch": wrong}} for wrong in (*BAD_INSTANTS[:3], -1, 10**400, "now")),
        *(
            {**HTTP, "requestContext": {**HTTP["requestContext"], "authorizer": wrong}}
            for wrong in (7, {"iam": {"x": 1}}, {"lambda": {"x": 1}})
        ),
    ],
    "console": [*NO_EVENT, {}, {"Records": []}],
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_event_is_refused_in_one_line_and_changes_nothing(name: str) -> None:
    assert [str(event)[:200] for event in REFUSED[name] if not refusals_of(name, event)] == []


BAD_REPORTS = ["", "not JSON", DEEP_TEXT, BELOW_TEXT, encode(a_metrics_batch()).decode().replace("1700000000.0", "1e999")]
BAD_REPORTS += [
    encode({**plain(a_metrics_batch()), **wrong}).decode() for wrong in ({"schema_version": 99}, {"batch_id": ""}, {"batch_id": LONG})
]
BAD_REPORTS += [
    json.dumps({**plain(a_metrics_batch()), "arrivals": [{"model": "digits", "window_at_s": at_s, "count": count}]})
    for at_s, count in ((1e300, 1), (-5.0, 1), (0.0, -1), (0.0, 10**12), (0.0, 2**70), (0.0, 1.5), ("now", 1))
]


@pytest.mark.parametrize("body", BAD_REPORTS, ids=range(len(BAD_REPORTS)))
def test_bad_report_is_refused_in_one_line_and_the_others_are_counted(body: str) -> None:
    good = {"messageId": "good", "body": encode(a_metrics_batch()).decode()}

    with function("ingest") as invoke, listening() as lines:
        reply = invoke({"Records": [{"messageId": "bad", "body": body}, good]})
        counted = wiring.windows().arrivals("digits", since_s=0.0, until_s=1e11)

    assert reply == {"batchItemFailures": [{"itemIdentifier": "bad"}]}
    assert list(counted.values()) == [10]
    (line,) = lines
    assert (line.getMessage(), line.__dict__["refused"], line.__dict__["message_id"]) == ("refused", "metrics report", "bad")


def test_line_is_json_and_short_and_repeats_little_of_what_was_sent() -> None:
    secret = "s3cret" * 20_000
    events = {"lifecycle": {"action": secret}, "plan": {"trigger": secret}, "spillover": {**SPILLED, "schema_version": secret}, "api": {}}
    events |= {
        "forecast": {"action": f"{HALF}{secret}"},
        "authorizer": {"headers": {"x-api-key": [secret]}},
        "console": {"rawPath": secret},
    }

    for name, event in events.items():
        (line,) = map(written, refusals_of(name, event))
        told = json.loads(line)
        assert {"level", "refused", "reason", "timestamp"} <= set(told)
        assert told["level"] == "ERROR"
        assert len(line.encode()) <= LINE_MAX_BYTES


def test_found_message_id_is_cut_short() -> None:
    with function("ingest") as invoke, listening() as lines:
        invoke({"Records": [{"messageId": "m" * 500, "body": "not JSON"}]})

    assert len(lines[0].__dict__["message_id"]) == FACT_MAX_CHARACTERS


@fuzz(60)
@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(["X-Api-Key", "x-api-key"]), st.text(max_size=20), max_size=3))
def test_authoriser_lets_nobody_in_who_does_not_show_the_key(headers: dict[str, str]) -> None:
    with function("authorizer") as invoke:
        assert invoke({"headers": headers}) == DENIED
        others = {name: value for name, value in headers.items() if name.lower() != "x-api-key"}
        assert invoke({"headers": {**others, "x-api-key": KEY}})["isAuthorized"]
