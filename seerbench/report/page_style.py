"""The style sheet of the report and of the notebooks' pages, and what a page does when a box is wider than it."""

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #57606a; --page: #fff; --line: #d0d7de; --card: #f6f8fa;
  --link: #0550ae; --good: #116329; --bad: #a40e26; --open: #7d4e00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9da7b3; --page: #0d1117; --line: #30363d;
  --card: #161b22; --link: #79c0ff; --good: #56d364; --bad: #ff7b72; --open: #e3b341 } }
html { scroll-padding-top: 3.5rem }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page) }
h1 { font-size: 1.6rem; margin: 0 0 .5rem } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
h3 { margin-top: 2rem } a { color: var(--link) }
small, .label { color: var(--faint); font-size: .85rem; overflow-wrap: anywhere }
@media (min-width: 601px) { nav.bar { position: sticky; top: 0; z-index: 2; background: var(--page);
  border-bottom: 1px solid var(--line) } }
nav a { display: inline-block; padding: .3rem .8rem .3rem 0 }
.glance { list-style: none; padding: 0; columns: 22rem; font-size: .85rem } .glance li { margin: .15rem 0;
  break-inside: avoid } .glance a { font-weight: 600 }
dt { font-weight: 600 } dd { margin: 0 0 .3rem 1rem }
ul.label { padding-left: 1.2rem } summary { cursor: pointer; color: var(--link) } pre { overflow-x: auto }
article { border: 1px solid var(--line); border-radius: 6px; padding: .6rem 1rem; margin: .7rem 0 }
article h3 { margin: 0; font-size: 1rem } article p { margin: .3rem 0; overflow-wrap: anywhere }
.reproduced { color: var(--good) } .contradicted { color: var(--bad) } .undecided { color: var(--open) }
.not-testable-here, .not-measured { color: var(--faint) }
.hint { margin: .5rem 0 0; font-size: .8rem; color: var(--faint) }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .2rem 0 1rem }
.wide:focus-visible, a:focus-visible, summary:focus-visible { outline: 3px solid var(--link) }
.wide img { display: block; width: 100%; min-width: 44rem; background: #fff }
table { border-collapse: collapse; font-size: .85rem } caption { text-align: left; padding: .4rem .6rem }
th, td { padding: .25rem .6rem; text-align: left; white-space: nowrap; border-top: 1px solid var(--line) }
.wrap td, .wrap th { white-space: normal; vertical-align: top }
th { background: var(--card) } td.number { text-align: right; font-variant-numeric: tabular-nums }
th[scope=row] { position: sticky; left: 0; font-weight: normal; min-width: 12rem;
  max-width: 20rem; white-space: normal }
@media (max-width: 600px) { th[scope=row] { min-width: 6rem; max-width: 8rem } pre { white-space: pre-wrap } }
"""
# Above each box that can scroll sideways; the script removes it where the box is wide enough.
HINT = '<p class="hint">Wider than this page: scroll it sideways.</p>'
SCRIPT = """
const hints = () => document.querySelectorAll('.hint').forEach(hint => {
  const box = hint.nextElementSibling;
  hint.hidden = box.clientWidth > 0 && box.scrollWidth <= box.clientWidth;
});
addEventListener('load', hints);
addEventListener('resize', hints);
document.addEventListener('toggle', hints, true);
const unfold = () => document.getElementById(location.hash.slice(1))?.closest('details')?.setAttribute('open', '');
addEventListener('load', unfold);
addEventListener('hashchange', unfold);
"""


def wide(content: str, label: str) -> str:
    """Return a box that scrolls sideways if its content (HTML) is wider than the page, and says so.

    label: what it holds, for readers who cannot see it.
    """
    return f'{HINT}<div class="wide" tabindex="0" role="region" aria-label="{label}">{content}</div>'
