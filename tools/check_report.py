#!/usr/bin/env python3
"""Opens a report of `tsbd report` in a headless Chromium, as a reader does, and says what is wrong with it.

    pip install playwright axe-playwright-python       # and a Chromium: Debian's `chromium`, or `playwright install chromium`
    tools/check_report.py report.html [--screenshots DIR]

Nothing may be loaded from elsewhere or appear as an error in the console. Every column of every table is sorted by a click and by the
keyboard, filters are typed, the details of a cell are opened, letters of figures are measured, everything on a desk and on a phone.
axe-core may find no fault that is serious or
critical. The exit code is 1 if anything is wrong, 77 where playwright, axe or a browser is missing.
"""

import argparse
import shutil
import sys
from pathlib import Path

SCREENS = {"desk": (1280, 900), "phone": (390, 844)}
LARGEST = 5_000_000
READABLE = 7.0
SMALLEST_LETTERS = """() => {
    const sizes = [...document.querySelectorAll(".scroll figure > svg")].flatMap(svg => {
        const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
        return [...svg.querySelectorAll("text")].map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
    });
    return sizes.length ? Math.min(...sizes) : null;
}"""
MISSING = 77


def columns(page, table, index):
    """What the rows of a table show in a column."""
    return page.eval_on_selector_all(
        f"{table} tbody tr", "(rows, index) => rows.map(row => row.cells[index].textContent.trim())", index
    )


def numbers(texts):
    """The numbers of a column: what comes before everything else, however it is sorted."""
    found = []
    for text in texts:
        try:
            found.append(float(text.split("±")[0]))
        except ValueError:
            pass
    return found


def check_sorting(page, table, fault):
    """Sorts every column both ways. Whether one of them has different numbers."""
    telling = False
    heads = page.locator(f"{table} th[data-column]")
    for index in range(heads.count()):
        head = heads.nth(index)
        button, column = head.locator("button"), int(head.get_attribute("data-column"))
        name = f"{table}, column {column}"
        before = sorted(columns(page, table, 0)), sorted(columns(page, table, column))
        button.click()
        if head.get_attribute("aria-sort") != "ascending":
            fault(f"{name}: a click does not sort")
        up = columns(page, table, column)
        button.focus()
        page.keyboard.press("Enter")
        if head.get_attribute("aria-sort") != "descending":
            fault(f"{name}: the keyboard does not sort")
        down = columns(page, table, column)
        ascending, descending = numbers(up), numbers(down)
        if ascending != sorted(ascending) or numbers(up[: len(ascending)]) != ascending:
            fault(f"{name}: numbers do not ascend, or do not come first: {up[:5]}")
        if descending != sorted(ascending, reverse=True) or numbers(down[: len(descending)]) != descending:
            fault(f"{name}: numbers do not descend, or do not come first: {down[:5]}")
        if up[len(ascending) :] != down[len(descending) :][::-1]:
            fault(f"{name}: words are not sorted both ways: {up[len(ascending):][:5]}")
        if (sorted(columns(page, table, 0)), sorted(down)) != before:
            fault(f"{name}: sorting lost rows")
        telling |= len(set(ascending)) > 1
    return telling


def shown(page, table):
    """What is written in the cells of each row that can be seen."""
    visible = "rows => rows.filter(row => row.getClientRects().length).map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    return page.eval_on_selector_all(f"{table} tbody tr", visible)


def check_filter(page, field, fault):
    """Types words of the table, of each column in turn. Whether one of them hides a row."""
    table, hides = "#" + field.get_attribute("data-filters"), False
    everything = shown(page, table)
    words = {cell: None for column in zip(*everything) for cell in sorted(set(column))[:3] if len(cell.split()) == 1}
    for word in words:
        field.fill(word)
        expected = [row for row in everything if word.lower() in " ".join(row).lower()]
        if shown(page, table) != expected:
            fault(f"{table}: filter '{word}' does not show the {len(expected)} rows with the word")
        hides |= len(expected) < len(everything)
    field.fill("no row has this")
    if shown(page, table):
        fault(f"{table}: rows are shown that the filter excludes")
    field.fill("")
    if shown(page, table) != everything:
        fault(f"{table}: an emptied filter hides rows")
    return hides


def check(page, path, screen, fault, screenshots, Axe):
    page.on("console", lambda message: fault(f"console: {message.text}") if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: fault(f"script: {error}"))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else fault(f"loads {request.url}"))
    page.goto(path.resolve().as_uri())
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.className") != "skip":
        fault("the first stop of the keyboard is not the link to the results")
    tables = ["#" + name for name in page.eval_on_selector_all("table.sortable", "all => all.map(table => table.id)")]
    if not tables:
        fault("there is no table")
    # A check that could not fail would prove nothing.
    if not any([check_sorting(page, table, fault) for table in tables]):
        fault("no column of any table has two different numbers to sort")
    filters = [check_filter(page, field, fault) for field in page.locator("input[data-filters]").all()]
    if not any(filters):
        fault("no filter has anything to hide")
    if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
        fault("the page is wider than the screen")
    smallest = page.evaluate(SMALLEST_LETTERS)
    if smallest is not None and smallest < READABLE:
        fault(f"a figure has letters of {smallest:.1f} pixels")
    for details in page.locator("details summary").all()[:3]:
        details.click()
    if screenshots:
        screenshots.mkdir(parents=True, exist_ok=True)
        page.evaluate("window.scrollTo(0, 0)")
        page.screenshot(path=screenshots / f"{path.stem}-{screen}.png")
    for violation in Axe().run(page).response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            nodes = [node["html"][:120] for node in violation["nodes"][:3]]
            fault(f"axe: {violation['id']}: {violation['help']}: {nodes}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="+")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="leave a picture of each screen there")
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"), help="a Chromium")
    arguments = parser.parse_args()
    try:
        from axe_playwright_python.sync_playwright import Axe
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        print(f"not checked: {error}; pip install playwright axe-playwright-python", file=sys.stderr)
        return MISSING
    faults = []
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=arguments.browser)
        except Error as error:
            print(f"not checked: no browser: {error}", file=sys.stderr)
            return MISSING
        for path in arguments.report:
            if path.stat().st_size > LARGEST:
                faults.append(f"{path}: {path.stat().st_size} bytes, more than {LARGEST}")
            for screen, (width, height) in SCREENS.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                check(page, path, screen, lambda text: faults.append(f"{path}, {screen}: {text}"), arguments.screenshots, Axe)
                page.close()
        browser.close()
    for fault in faults:
        print(fault)
    print(f"{len(arguments.report)} reports on {len(SCREENS)} screens: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
