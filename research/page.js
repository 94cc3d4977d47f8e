// A click on a column's head sorts its table by it. Each trial or setting is one tbody, so its details move with it.
for (const table of document.querySelectorAll("table")) table.tHead.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (!head) return;
  const rising = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const value = (body) => body.rows[0].cells[head.cellIndex].dataset.value;
  const order = (a, b) => {
    if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === ""); // unmeasured trials last
    const difference = isNaN(value(a)) || isNaN(value(b)) ? value(a).localeCompare(value(b)) : value(a) - value(b);
    return rising ? difference : -difference;
  };
  table.append(...[...table.tBodies].sort(order));
});
