import pytest

from markserve.core.cost import (
    DYNAMODB_WRITE_BYTES,
    PLUMBING_PRICES,
    SQS_CHUNK_BYTES,
    instance_cost_usd,
    lambda_cost_usd,
    metered_units,
    newsvendor_quantile,
    plumbing_cost_breakdown_usd,
    plumbing_cost_usd,
    spill_cost_per_request_usd,
    worker_cost_per_request_usd,
)


@pytest.mark.parametrize(("seconds", "billed_s"), [(0.0, 60), (59.9, 60), (60.0, 60), (60.1, 61), (3600.0, 3600)])
def test_instance_is_billed_by_the_started_second_with_a_minute_at_least(seconds: float, billed_s: int) -> None:
    assert instance_cost_usd(3.6, seconds) == pytest.approx(0.001 * billed_s)


def test_instance_cost_refuses_when_price_or_time_is_negative() -> None:
    with pytest.raises(ValueError, match="price_usd_per_hour"):
        instance_cost_usd(-0.1, 60.0)
    with pytest.raises(ValueError, match="seconds"):
        instance_cost_usd(0.1, -1.0)


@pytest.mark.parametrize(("duration_s", "billed_s"), [(0.1, 0.1), (0.1001, 0.101), (0.0, 0.0)])
def test_lambda_is_billed_by_the_started_millisecond(duration_s: float, billed_s: float) -> None:
    assert lambda_cost_usd(duration_s=duration_s, memory_mb=2048) == pytest.approx(billed_s * 2 * 1.66667e-5 + 0.2e-6)


def test_lambda_is_cheaper_when_the_architecture_is_arm() -> None:
    assert lambda_cost_usd(duration_s=1.0, memory_mb=1024, invocations=10, architecture="arm64") == pytest.approx(10 * (1.33334e-5 + 2e-7))


def test_lambda_cost_refuses_when_memory_is_zero() -> None:
    with pytest.raises(ValueError, match="memory_mb"):
        lambda_cost_usd(duration_s=1.0, memory_mb=0)


def test_plumbing_of_a_million_requests_adds_up_when_every_call_is_counted() -> None:
    calls = {"http_api": 1e6, "lambda": 1e6, "sqs": 1.2e6, "dynamodb_write": 1e6, "dynamodb_read": 2e6}

    assert plumbing_cost_usd(calls) == pytest.approx(1.0 + 0.2 + 0.48 + 0.625 + 0.25)
    assert sum(plumbing_cost_breakdown_usd(calls).values()) == plumbing_cost_usd(calls)


def test_plumbing_refuses_when_a_kind_has_no_price() -> None:
    with pytest.raises(ValueError, match="no price for pigeon; known: http_api"):
        plumbing_cost_usd({"pigeon": 1})


def test_every_price_states_its_source_and_date() -> None:
    for price in PLUMBING_PRICES.values():
        assert "us-east-1" in price.source
        assert "202" in price.source


@pytest.mark.parametrize(
    ("size_bytes", "unit_bytes", "units"),
    [(0, 1024, 1), (1024, DYNAMODB_WRITE_BYTES, 1), (1025, 1024, 2), (1024 * 1024, SQS_CHUNK_BYTES, 16)],
)
def test_payload_is_metered_in_whole_units(size_bytes: int, unit_bytes: int, units: int) -> None:
    assert metered_units(size_bytes, unit_bytes) == units


def test_capacity_is_bought_to_the_critical_ratio_when_workers_are_cheaper() -> None:
    spill = spill_cost_per_request_usd(spill_latency_s=0.1, memory_mb=1024)
    worker = worker_cost_per_request_usd(price_usd_per_hour=0.085, service_rate_rps=100.0)

    assert newsvendor_quantile(spill_cost_per_request_usd=spill, worker_cost_per_request_usd=worker) == pytest.approx(1 - worker / spill)


@pytest.mark.parametrize(("worker_usd", "quantile"), [(0.0, 1.0), (1e-6, 0.0), (5e-6, 0.0), (0.25e-6, 0.75)])
def test_quantile_stays_within_bounds_when_prices_are_extreme(worker_usd: float, quantile: float) -> None:
    assert newsvendor_quantile(spill_cost_per_request_usd=1e-6, worker_cost_per_request_usd=worker_usd) == quantile


def test_newsvendor_refuses_when_costs_make_no_sense() -> None:
    with pytest.raises(ValueError, match="spill_cost_per_request_usd"):
        newsvendor_quantile(spill_cost_per_request_usd=0.0, worker_cost_per_request_usd=1e-6)
    with pytest.raises(ValueError, match="worker_cost_per_request_usd"):
        newsvendor_quantile(spill_cost_per_request_usd=1e-6, worker_cost_per_request_usd=-1e-6)
    with pytest.raises(ValueError, match="service_rate_rps"):
        worker_cost_per_request_usd(price_usd_per_hour=0.1, service_rate_rps=0.0)
