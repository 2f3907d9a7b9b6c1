// Sorts a table by the column whose heading is pressed: numbers by size, words by letter, empty cells always last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const headings = [...heading.parentElement.children];
    const column = headings.indexOf(heading);
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    const body = heading.closest("table").tBodies[0];
    const value = (line) => line.cells[column].dataset.value ?? "";
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return ascending ? order : -order;
    };
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  });
}
