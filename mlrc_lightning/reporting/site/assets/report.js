// Light and dark, sorting, and columns that can be hidden; without it every page still shows everything.
"use strict";
(() => {
  const root = document.documentElement;
  const KEY = "mlrc-report-theme";
  const remembered = () => {
    try { return localStorage.getItem(KEY); } catch { return null; }
  };
  const remember = (value) => {
    try { localStorage.setItem(KEY, value); } catch { /* a browser may allow none for files */ }
  };
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  // before anything is painted
  const theme = remembered();
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;

  function themeButton() {
    const button = document.getElementById("theme");
    const show = () => button.setAttribute("aria-pressed", String(isDark()));
    button.hidden = false;
    show();
    prefersDark.addEventListener("change", show);
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember(root.dataset.theme);
      show();
    });
  }

  // where each heading stands in a head with cells that span rows and columns
  function headings(table) {
    const taken = [];
    const found = [];
    [...table.tHead.rows].forEach((row, level) => {
      let column = 0;
      for (const cell of row.cells) {
        while (taken[level]?.[column]) column += 1;
        const span = Number(cell.dataset.span ??= cell.colSpan);
        found.push({ cell, column, span });
        for (let down = 0; down < cell.rowSpan; down += 1) {
          for (let along = 0; along < span; along += 1) (taken[level + down] ??= [])[column + along] = true;
        }
        column += span;
      }
    });
    return found;
  }

  function keyOf(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    if (cell.classList.contains("missing")) return null;
    const words = cell.textContent.trim();
    return words === "" || words === "–" ? null : words;
  }

  // numbers before words, and what is missing last, whichever way it is sorted
  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const status = document.createElement("p");
    status.className = "unseen";
    status.setAttribute("role", "status");
    table.parentElement.after(status);
    const all = headings(table);
    const groups = all.filter(({ cell }) => cell.scope === "colgroup");
    const sortable = all.filter(({ cell }) => cell.scope === "col");
    for (const { cell, column } of sortable) {
      const group = groups.find((one) => one.column <= column && column < one.column + one.span);
      const name = (group ? `${group.cell.textContent.trim()}, ` : "") + cell.textContent.trim();
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      button.setAttribute("aria-label", name);
      cell.append(button);
      button.addEventListener("click", () => {
        const now = cell.getAttribute("aria-sort");
        const isNumber = original.some((row) => row.cells[column].dataset.value !== undefined);
        const [first, second] = isNumber ? ["descending", "ascending"] : ["ascending", "descending"];
        const next = now === null ? first : now === first ? second : null;
        for (const other of sortable) other.cell.removeAttribute("aria-sort");
        let rows = original;
        if (next !== null) {
          cell.setAttribute("aria-sort", next);
          const sign = next === "ascending" ? 1 : -1;
          rows = original.map((row) => [keyOf(row, column), row]).sort(([a], [b]) => compare(a, b, sign)).map(([, row]) => row);
        }
        body.append(...rows);
        status.textContent = next === null ? "In the original order." : `Sorted by ${name}, ${next}.`;
      });
    }
  }

  function makeHideable(controls) {
    const tables = [...document.querySelectorAll(".mlrc-table table")];
    controls.hidden = false;
    const apply = () => {
      const hidden = [...controls.querySelectorAll("button")]
        .filter((button) => button.getAttribute("aria-pressed") === "false").map((button) => button.value);
      const isAway = (cell) => hidden.some((role) => cell.classList.contains(role));
      for (const table of tables) {
        for (const cell of table.querySelectorAll("td, th[scope=col]")) cell.classList.toggle("away", isAway(cell));
        const all = headings(table);
        for (const { cell, column, span } of all.filter((heading) => heading.cell.scope === "colgroup")) {
          const own = all.filter((h) => h.cell.scope === "col" && h.column >= column && h.column < column + span);
          const shown = own.filter((h) => !h.cell.classList.contains("away")).length;
          cell.classList.toggle("away", shown === 0);
          cell.colSpan = Math.max(1, shown);
        }
      }
    };
    for (const button of controls.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
        apply();
      });
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    themeButton();
    document.querySelectorAll("table.sortable").forEach(makeSortable);
    document.querySelectorAll(".controls").forEach(makeHideable);
  });
})();
