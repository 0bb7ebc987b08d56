"use strict";
// Sorts a table by the column of the button that was pressed, and shows only the rows that contain a text.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.querySelectorAll("th[data-column]")) {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const column = Number(head.dataset.column);
      const key = (row) => {
        const cell = row.cells[column];
        const text = (cell.dataset.value ?? cell.textContent).trim();
        return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
      };
      // What has no number comes last, whichever the direction.
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
        return down ? -order : order;
      };
      const body = table.tBodies[0];
      body.append(...Array.from(body.rows).sort(compare));
    });
  }
}
for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = Array.from(document.getElementById(input.dataset.filters).tBodies[0].rows);
  const count = input.parentElement.querySelector("output");
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      if (!row.hidden) shown += 1;
    }
    count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  };
  input.addEventListener("input", filter);
  filter();
}
