import pytest

from markserve.core.admitted_share import SHARE_MIN, AdmittedShare, revise_share, usable_rate_rps
from markserve.core.lot import lot_of

ONE = "i-1"


def revised(known: AdmittedShare, *, entered: int, at_s: float, usable_rps: float = 50.0, members: str = ONE) -> AdmittedShare:
    return revise_share(known, entered=entered, members=members, viewed_at_s=at_s, usable_rps=usable_rps)


def after(seconds: int, *, offered_rps: float, usable_rps: float = 50.0, known: AdmittedShare | None = None) -> AdmittedShare:
    """A front that looks every second, at a fleet that all fronts admit the same share to."""
    share = known or AdmittedShare()
    began_s = share.viewed_at_s if share.viewed_at_s is not None else -1.0
    entered = float(share.entered)
    for second in range(1, seconds + 1):
        entered += offered_rps * share.share
        share = revised(share, entered=round(entered), at_s=began_s + second, usable_rps=usable_rps)
    return share


def test_everything_is_admitted_before_there_are_two_views_to_compare() -> None:
    first = revised(AdmittedShare(), entered=10_000, at_s=100.0)

    assert (first.share, first.offered_rps, first.reason) == (1.0, None, "all requests are admitted")
    assert not first.turns_away(0.999_999)


def test_everything_is_admitted_when_workers_can_use_what_is_offered() -> None:
    assert after(30, offered_rps=49.0).share == 1.0


def test_share_is_what_workers_can_use_of_what_is_offered() -> None:
    share = after(30, offered_rps=200.0)

    assert share.share == pytest.approx(0.25, rel=0.02)
    assert share.reason == "25% are admitted, as workers can use 50.0 of 200.0 rps"
    assert share.turns_away(0.26)
    assert not share.turns_away(0.24)


def test_share_recovers_within_seconds_when_the_load_has_fallen() -> None:
    assert after(8, offered_rps=30.0, known=after(30, offered_rps=200.0)).share == 1.0


def test_share_follows_the_capacity_and_keeps_the_estimate_when_the_fleet_changes() -> None:
    before = after(30, offered_rps=200.0)

    grown = revised(before, entered=7, at_s=(before.viewed_at_s or 0.0) + 1, usable_rps=100.0, members="i-1 i-2")

    assert grown.offered_rps == before.offered_rps
    assert grown.share == pytest.approx(0.5, rel=0.02)


def test_share_starts_anew_when_the_front_has_slept() -> None:
    before = after(30, offered_rps=200.0)

    woken = revised(before, entered=before.entered + 1, at_s=(before.viewed_at_s or 0.0) + 600.0)

    assert (woken.share, woken.offered_rps) == (1.0, None)


@pytest.mark.parametrize("later_s", [0.0, -1.0])
def test_share_stands_when_the_view_is_no_newer(later_s: float) -> None:
    known = after(30, offered_rps=200.0)

    assert revised(known, entered=0, at_s=(known.viewed_at_s or 0.0) + later_s) is known


def test_some_are_admitted_when_workers_can_use_nothing() -> None:
    assert after(30, offered_rps=200.0, usable_rps=0.0).share == SHARE_MIN


def test_share_is_refused_when_the_capacity_is_negative() -> None:
    with pytest.raises(ValueError, match="usable_rps"):
        revised(AdmittedShare(), entered=0, at_s=1.0, usable_rps=-1.0)


@pytest.mark.parametrize(("servers", "batch_latency_s", "waiting_s"), [(0, 0.1, 0.1), (2, 0.0, 0.1), (2, 0.1, 0.0), (2, 0.1, -0.1)])
def test_nothing_is_usable_when_nobody_serves_or_no_time_is_left_to_wait(servers: int, batch_latency_s: float, waiting_s: float) -> None:
    usable = usable_rate_rps(
        servers=servers, service_rate_rps=10.0, batch_latency_s=batch_latency_s, waiting_s=waiting_s, late_share_max=0.02
    )

    assert usable == 0.0


def test_lots_are_spread_evenly() -> None:
    lots = [lot_of(f"request-{number}") for number in range(4000)]

    assert sum(lot < 0.3 for lot in lots) / len(lots) == pytest.approx(0.3, abs=0.03)
