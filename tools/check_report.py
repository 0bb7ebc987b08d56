#!/usr/bin/env python3
"""Opens a report of `tsbd report` in a headless Chromium, as a reader does, and says what is wrong with it.

    pip install playwright axe-playwright-python       # and a Chromium: Debian's `chromium`, or `playwright install chromium`
    tools/check_report.py report.html [--screenshots DIR]

Nothing may be loaded from elsewhere or appear as an error in the console. A table is sorted by a click and by the keyboard, a filter
is typed, the details of a cell are opened, everything on a desk and on a phone. axe-core may find no fault that is serious or
critical. The exit code is 1 if anything is wrong, 77 where playwright, axe or a browser is missing.
"""

import argparse
import shutil
import sys
from pathlib import Path

SCREENS = {"desk": (1280, 900), "phone": (390, 844)}
LARGEST = 5_000_000
MISSING = 77


def columns(page, table, index):
    """What the rows of a table show in a column."""
    return page.eval_on_selector_all(
        f"{table} tbody tr", "(rows, index) => rows.map(row => row.cells[index].textContent.trim())", index
    )


def is_ordered(texts):
    """Numbers ascend, and what is no number follows."""
    numbers = []
    for text in texts:
        try:
            numbers.append(float(text.split("±")[0]))
        except ValueError:
            numbers.append(float("inf"))
    return numbers == sorted(numbers)


def check_sorting(page, table, fault):
    heads = page.locator(f"{table} th[data-column] button")
    index = heads.count() - 1
    button = heads.nth(index)
    column = int(button.locator("xpath=ancestor::th").get_attribute("data-column"))
    name = f"{table}, column {column}"
    before = sorted(columns(page, table, 0))
    button.click()
    if button.locator("xpath=ancestor::th").get_attribute("aria-sort") != "ascending":
        fault(f"{name}: a click does not sort")
    button.focus()
    page.keyboard.press("Enter")
    if button.locator("xpath=ancestor::th").get_attribute("aria-sort") != "descending":
        fault(f"{name}: the keyboard does not sort")
    page.keyboard.press("Enter")
    if not is_ordered(columns(page, table, column)):
        words = columns(page, table, column)
        if words != sorted(words):
            fault(f"{name}: not in order after sorting: {words[:5]}")
    if sorted(columns(page, table, 0)) != before:
        fault(f"{name}: sorting lost rows")


def check_filter(page, field, fault):
    table = "#" + field.get_attribute("data-filters")
    rows = page.locator(f"{table} tbody tr")
    word = columns(page, table, 0)[0]
    field.fill(word)
    shown = [row for row in rows.all() if row.is_visible()]
    if not shown or any(word not in row.text_content() for row in shown):
        fault(f"{table}: filter '{word}' shows {len(shown)} rows, not those with the word")
    field.fill("no row has this")
    if any(row.is_visible() for row in rows.all()):
        fault(f"{table}: rows are shown that the filter excludes")
    field.fill("")
    if any(not row.is_visible() for row in rows.all()):
        fault(f"{table}: an emptied filter hides rows")


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
    for table in tables:
        check_sorting(page, table, fault)
    for field in page.locator("input[data-filters]").all():
        check_filter(page, field, fault)
    if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
        fault("the page is wider than the screen")
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
