# SPDX-License-Identifier: Apache-2.0
"""The report's stylesheet: one column of cards, light and dark, from phone to desktop widths."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2027; --soft: #5b6672; --line: #e1e5ea;
  --run: #0b7285; --base: #98a2ad; --good: #2b7a3d; --bad: #c0392b; --plot: #eef1f4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2127; --ink: #e6eaee; --soft: #9aa5b1; --line: #2e353d;
    --run: #3bc2d4; --base: #76818d; --good: #69c77d; --bad: #f0847a; --plot: #c9cfd6;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1400px; margin: 0 auto; padding: clamp(16px, 3vw, 40px); }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.15; margin: 0; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .2rem; }
h3 { font-size: .9rem; font-weight: 600; margin: 0; }
p { margin: 0; max-width: 75ch; }
.soft, figcaption, .note { color: var(--soft); font-size: .875rem; }
section, header { margin-bottom: clamp(20px, 2.5vw, 32px); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: clamp(14px, 2vw, 24px); }
section > .note { margin-bottom: 1rem; }
figure { margin: 0; min-width: 0; }
figcaption, .tile, .keys { overflow-wrap: anywhere; }

.tiles { display: grid; gap: 12px; margin-top: 18px;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 18px; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile.main { border-left: 5px solid var(--run); }
.tile.main b { font-size: 2.4rem; }
.good { color: var(--good); } .bad { color: var(--bad); }

.charts { display: grid; gap: 20px 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); }
.charts figure { max-width: 460px; }
.curves { display: grid; gap: 24px; }
.curves .score { max-width: 640px; }
@media (max-width: 600px) { .score .tick { font-size: 18px; } .score .value { font-size: 20px; } }
@media (min-width: 1000px) { .curves { grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); } }
.chart, .scatter { display: block; width: 100%; height: auto; }
.chart .grid { stroke: var(--line); }
.tick { fill: var(--soft); font-size: 11px; }
.value { font-size: 13px; font-weight: 650; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.run { stroke: var(--run); } .end.run, .value.run { fill: var(--run); }
.line.base { stroke: var(--base); stroke-dasharray: 5 4; }
.end.base { fill: var(--base); } .value.base { fill: var(--soft); }
.keys { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 4px 0 14px; color: var(--soft);
  font-size: .875rem; }
.keys i { display: inline-block; width: 18px; height: 10px; border-radius: 3px; margin-right: 6px; }
.keys .run { background: var(--run); } .keys .base { background: var(--base); }

table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { padding: 5px 8px; text-align: left; font-weight: 400; vertical-align: middle; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 1%; }
.iou th { width: 1%; white-space: nowrap; padding-left: 0; }
.iou td:last-child { padding-right: 0; }
@media (max-width: 600px) { .iou .before { display: none; } .iou td, .iou th { padding: 5px 4px; } }
.iou thead th { color: var(--soft); font-size: .8rem; }
.iou thead th.number { text-align: right; }
.iou tr.mean > * { border-top: 1px solid var(--line); font-weight: 650; padding-top: 9px; }
.track { background: var(--plot); border-radius: 4px; min-width: 60px; overflow: hidden; }
@media (prefers-color-scheme: dark) { .track { background: var(--line); } }
.bar { height: 8px; border-radius: 0 4px 4px 0; background: var(--run); }
.bar.base { height: 5px; background: var(--base); }
.swatch { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 8px;
  vertical-align: -1.5px; box-shadow: inset 0 0 0 1px rgb(128 128 128 / .6); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .875rem; padding: 0;
  margin: 12px 0 0; list-style: none; }

.panel + .panel { margin-top: 18px; padding-top: 16px; border-top: 1px solid var(--line); }
.panel header { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline;
  margin: 0 0 8px; }
.strip { display: grid; gap: 10px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
@media (min-width: 720px) { .strip { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
@media (min-width: 1180px) {
  .strip { grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
}
.strip img { display: block; width: 100%; height: auto; border-radius: 5px;
  image-rendering: pixelated; }
.strip img.photo { image-rendering: auto; }
.ramp { display: inline-block; width: 90px; height: 10px; border-radius: 3px; margin: 0 6px;
  background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725); }
.ink { display: inline-block; width: 18px; height: 10px; border-radius: 3px; margin-right: 6px; }

.views { display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); }
.views figure { max-width: 520px; }
.scatter { background: var(--plot); border-radius: 8px; }
.scatter path { fill: none; stroke-width: 4; stroke-linecap: round; opacity: .75; }

details summary { cursor: pointer; font-weight: 600; }
details table { margin-top: 10px; }
.settings td { border-top: 1px solid var(--line); overflow-wrap: anywhere; }
.settings td:first-child, .settings th:first-child { padding-left: 0; }
.settings td:first-child, .settings th { color: var(--soft); }
.settings tr.changed td:last-child { color: var(--run); font-weight: 600; }
code { font: .875em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: .875rem; }
"""
