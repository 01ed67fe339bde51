// Adds a field above the table of families that hides the rows without all words typed into it.
const table = document.querySelector("#families table");
if (table) {
  const rows = [...table.querySelectorAll("tbody tr")];
  const label = document.createElement("label");
  const field = document.createElement("input");
  const count = document.createElement("output");
  const line = document.createElement("p");
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    count.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  field.type = "search";
  field.placeholder = "such as qwen, experts, no resid_mid";
  field.addEventListener("input", show);
  label.append("Filter ", field);
  line.className = "filter";
  line.append(label, " ", count);
  (table.closest(".table-wrapper") ?? table).before(line);
  show();
}
