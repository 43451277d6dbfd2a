"""The page: one HTML file that needs nothing else, in light and dark, on a wide screen or a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from simulator.report import figures, style
from simulator.report.drawing import Chart
from simulator.report.reading import ControlStep, PolicyRun

_CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI","Liberation Sans",Arial,sans-serif}
main{max-width:1100px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.55rem;line-height:1.25;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:1.12rem;margin:44px 0 4px}
h3{font-size:1rem;margin:0}
p{margin:0 0 10px;max-width:74ch}
.lead{font-size:1.08rem}.note,.facts{color:var(--muted);font-size:.9rem}
.scroll{overflow-x:auto;margin:12px 0 6px}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{padding:5px 12px;text-align:left;border-bottom:1px solid var(--grid);vertical-align:top}
thead th{border-bottom:2px solid var(--muted);vertical-align:bottom}
.figures td,.figures thead th:not(:first-child),td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.rented td{white-space:nowrap}
tbody th{font-weight:400;color:var(--muted);white-space:nowrap}
.figures th:first-child{position:sticky;left:0;background:var(--paper);padding-left:0}
.figures tr.part th,.figures tr.part td{border-top:2px solid var(--grid)}
td.miss{color:var(--limit);font-weight:600}
.best{font-weight:700}
.key{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.45em}
svg{display:block;width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:"Liberation Sans",Arial,Helvetica,system-ui,sans-serif}
figure{margin:10px 0 0}.narrow{display:none}
details{border-top:1px solid var(--grid);padding:10px 0}
summary{cursor:pointer;font-weight:600}
td.why{min-width:17rem;overflow-wrap:anywhere}
.why p{margin:0 0 4px;max-width:none}
footer{margin-top:48px;border-top:1px solid var(--grid);padding-top:12px}
@media (max-width:700px){main{padding:18px 16px 40px}.wide{display:none}.narrow{display:block}h1{font-size:1.3rem}
th,td{padding:5px 8px}
.steps,.steps tbody{display:block}.steps thead{display:none}
.steps tr{display:flex;flex-wrap:wrap;gap:2px 14px;padding:8px 0;border-bottom:1px solid var(--grid)}
.steps td{border:0;padding:0}.steps td:first-child{font-weight:600}.steps td.why{flex-basis:100%;min-width:0}}
@media print{details{break-inside:avoid}figure{break-inside:avoid}}
"""

MISS = ' class="miss"'


def page(runs: Sequence[PolicyRun], charts: Sequence[Chart], *, title: str) -> str:
    """Write the page."""
    colours = style.colours([run.label for run in runs])
    sections = [_chart(chart) for chart in charts]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_variables()}{_CSS}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="lead">{escape(figures.headline(runs))}</p>
<p class="facts">{escape(_facts(runs))}</p>
<h2>Policies side by side</h2>
{_table(runs, colours)}
<p class="note">{escape(_table_note(runs))}</p>
{"".join(sections)}
<h2>What was rented</h2>
{_rented(runs, colours)}
<h2>What each policy decided, and why</h2>
<p class="note">The first and the last control step, those that changed the fleet most, and the one in force in the worst minute. All are in
control.csv.</p>
{"".join(_decisions(run, colours[run.label], is_open=index == 0) for index, run in enumerate(runs))}
<footer class="note">{escape(_checked(runs))} Figures are those of summary.json; docs/simulator.md says how each is defined and
recomputed.</footer>
</main>
</body>
</html>
"""


def _variables() -> str:
    def block(colours: dict[str, str]) -> str:
        named = {"--ink": style.INK, "--muted": style.MUTED, "--grid": style.GRID, "--paper": style.PAPER, "--limit": style.LIMIT}
        values = {**{style.NAMES[c]: colours.get(c, c) for c in style.NAMES}, **{name: colours.get(c, c) for name, c in named.items()}}
        return ";".join(f"{name}:{value}" for name, value in values.items())

    return f":root{{color-scheme:light dark;{block({})}}}@media (prefers-color-scheme:dark){{:root{{{block(style.DARK)}}}}}"


def _facts(runs: Sequence[PolicyRun]) -> str:
    """Say what was replayed, once if it is the same for all."""
    said: dict[str, list[str]] = {}
    for run in runs:
        s = run.summary
        mean_rps = s.requests / s.simulated_s if s.simulated_s else 0.0
        load = f"{s.requests:,} requests over {_length(s.simulated_s)} ({mean_rps:,.0f}/s on average)"
        text = f"{load}, {100 * s.sl_min:g} % to be answered within {1000 * s.rt_max_s:g} ms"
        said.setdefault(text, []).append(run.label)
    if len(said) == 1:
        return f"{next(iter(said))}."
    return "Not the same load or objective everywhere, so compare with care. " + " ".join(
        f"{', '.join(labels)}: {text}." for text, labels in said.items()
    )


def _length(seconds: float) -> str:
    return f"{seconds / 3600:.4g} h" if seconds >= 5400 else f"{seconds / 60:.3g} min"


def _key(colour: str) -> str:
    return f'<span class="key" style="background:var({style.NAMES[colour]})"></span>'


def _table(runs: Sequence[PolicyRun], colours: dict[str, str]) -> str:
    head = "".join(f'<th scope="col">{_key(colours[run.label])}{escape(run.label)}</th>' for run in runs)
    rows = []
    for name, cells in figures.table(runs):
        part = ' class="part"' if name in ("attainment", "latency p50, ms", "spilled to Lambda", "on demand, $") else ""
        row = "".join(f"<td{MISS if missed else ''}>{escape(text)}</td>" for text, missed in cells)
        rows.append(f'<tr{part}><th scope="row">{escape(name)}</th>{row}</tr>')
    return f'<div class="scroll"><table class="figures"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _table_note(runs: Sequence[PolicyRun]) -> str:
    note = "Compute: instances and Lambda; all-in adds plumbing. Red: below SL_min. Latencies are of answered requests. Shares round down."
    unrecorded = [run.label for run in runs if run.requests is None]
    if unrecorded:
        note += f" Not in the charts of latency and attainment, as requests were not recorded: {', '.join(unrecorded)}."
    sampled = [run.label for run in runs if run.requests is not None and run.requests.rows < run.summary.requests]
    if sampled:
        note += f" Charts of {', '.join(sampled)} are of a recorded sample of requests; the table is of all."
    missing_s = max(run.summary.missing_s for run in runs)
    return note + (f" The trace knows nothing about {_length(missing_s)}; nothing arrives then." if missing_s else "")


def _chart(chart: Chart) -> str:
    title = escape(chart.title)
    drawn = "".join(
        f'<div class="{layout.name}">{style.as_svg(chart.draw(layout), name=f"{chart.name}-{layout.name}", title=title)}</div>'
        for layout in (style.WIDE, style.NARROW)
    )
    return f'<section id="{chart.name}"><h2>{title}</h2><p class="note">{escape(chart.note)}</p><figure>{drawn}</figure></section>'


def _rented(runs: Sequence[PolicyRun], colours: dict[str, str]) -> str:
    rows = [
        f"<tr><td>{_key(colours[run.label])}{escape(run.label)}</td><td>{escape(kind)}</td><td>{escape(capacity.replace('_', ' '))}</td>"
        f'<td class="n">{count:,}</td><td class="n">{hours:,.1f}</td><td class="n">{usd:,.2f}</td><td class="n">{cut:,}</td></tr>'
        for run in runs
        for kind, capacity, count, hours, usd, cut in figures.fleet_used(run)
    ]
    if not rows:
        return '<p class="note">No instance.</p>'
    return (
        '<div class="scroll"><table class="rented"><thead><tr><th>policy</th><th>type</th><th>capacity</th><th class="n">instances</th>'
        '<th class="n">hours</th><th class="n">$</th><th class="n">interrupted</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _decisions(run: PolicyRun, colour: str, *, is_open: bool) -> str:
    rows = "".join(_step(why, step) for why, step in figures.notable_steps(run))
    return (
        f"<details{' open' if is_open else ''}><summary>{_key(colour)}{escape(run.label)}</summary>"
        '<div class="scroll"><table class="steps"><thead><tr><th class="n">at</th><th>shown as</th><th class="n">demand</th>'
        f"<th>fleet</th><th>reason</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _step(why: str, step: ControlStep) -> str:
    reason = "".join(f"<p>{escape(part)}</p>" for part in step.reason.split(" | "))
    minutes = round(step.at_s / 60)
    at = f"{minutes // 60}:{minutes % 60:02d} h"
    return (
        f'<tr><td class="n">{at}</td><td>{escape(why)}</td><td class="n">{step.demand_rps:,.1f} rps</td>'
        f'<td>{escape(step.fleet or "none")}</td><td class="why">{reason}</td></tr>'
    )


def _checked(runs: Sequence[PolicyRun]) -> str:
    """Say whether the summary's figures follow from the files."""
    wrong = [f"{what} of {run.label}" for run in runs for what, agrees in figures.recomputed(run).items() if not agrees]
    if wrong:
        return f"These figures do not follow from the recorded files: {', '.join(wrong)}."
    attainment = [run for run in runs if "attainment" in figures.recomputed(run)]
    what = "Attainment and the instances' cost were" if len(attainment) == len(runs) else "The instances' cost was"
    return f"{what} recomputed from the recorded files and agree with the summaries."
