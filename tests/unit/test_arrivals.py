import pytest

from markserve.core.arrivals import ArrivalCount, series, step_maxima_rps, window_start


@pytest.mark.parametrize(
    ("at_s", "window_s", "start_s"),
    [(0.0, 5.0, 0.0), (4.999, 5.0, 0.0), (5.0, 5.0, 5.0), (1_700_000_004.2, 5.0, 1_700_000_000.0), (0.3, 0.1, 0.3), (1.25, 0.5, 1.0)],
)
def test_window_starts_at_a_multiple_of_its_length(at_s: float, window_s: float, start_s: float) -> None:
    assert window_start(at_s, window_s) == start_s


def test_window_start_is_a_fixed_point() -> None:
    for step in range(1000):
        start_s = window_start(1_700_000_000.0 + 0.1 * step, 0.1)
        assert window_start(start_s, 0.1) == start_s


def test_window_refuses_when_it_has_no_length() -> None:
    with pytest.raises(ValueError, match="window_s"):
        window_start(1.0, 0.0)


def test_series_is_zero_only_when_a_tick_came_shortly_after_the_window() -> None:
    counted = series({10.0: 4}, [6.0, 31.0], since_s=0.0, until_s=30.0, window_s=5.0, max_tick_gap_s=2.0)

    assert counted == [
        ArrivalCount(0.0, 0),  # tick at 6, one second after its end
        ArrivalCount(5.0, None),  # no tick within 10..12
        ArrivalCount(10.0, 4),  # recorded: no tick needed
        ArrivalCount(15.0, None),
        ArrivalCount(20.0, None),
        ArrivalCount(25.0, 0),  # tick at 31
    ]


def test_series_takes_a_window_as_unknown_when_the_only_tick_came_during_it() -> None:
    assert series({}, [4.0], since_s=0.0, until_s=5.0, window_s=5.0, max_tick_gap_s=60.0) == [ArrivalCount(0.0, None)]


def test_series_leaves_out_windows_when_the_interval_cuts_them() -> None:
    counted = series({0.0: 1, 5.0: 2, 10.0: 3}, [], since_s=1.0, until_s=14.0, window_s=5.0, max_tick_gap_s=1.0)

    assert counted == [ArrivalCount(5.0, 2)]


def test_series_is_empty_when_no_window_is_closed() -> None:
    assert series({}, [], since_s=10.0, until_s=12.0, window_s=5.0, max_tick_gap_s=1.0) == []


def windows(*counts: int | None) -> list[ArrivalCount]:
    return [ArrivalCount(5.0 * i, count) for i, count in enumerate(counts)]


def test_step_is_the_highest_window_when_all_are_known() -> None:
    assert step_maxima_rps(windows(1, 2, 10, 3), window_s=5.0, step_s=10.0) == [0.4, 2.0]


def test_step_is_unknown_when_less_than_half_of_it_is_known() -> None:
    assert step_maxima_rps(windows(None, None, 7, None, 7, None, None, 1), window_s=5.0, step_s=20.0) == [None, 1.4]
    assert step_maxima_rps(windows(None, 5), window_s=5.0, step_s=10.0) == [1.0]


def test_steps_end_with_the_last_window_when_some_are_left_over() -> None:
    assert step_maxima_rps(windows(50, 5, 5), window_s=5.0, step_s=10.0) == [1.0]


def test_step_refuses_when_it_is_shorter_than_a_window() -> None:
    with pytest.raises(ValueError, match="step_s"):
        step_maxima_rps(windows(1), window_s=5.0, step_s=1.0)
