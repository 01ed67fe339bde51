// The text above the grid: the prompt in grey, the response coloured by a measure of the model's own policy.

function textStrip(box, source, act) {
  const { payload } = source;
  const prompt = element("span", "lg-prompt"), response = element("span", "lg-response");
  prompt.textContent = payload.prompt.map(running).join("");
  const spans = payload.tokens.map((token, column) => {
    const span = element("span", "lg-token", running(token) || "∅");
    span.column = column;
    return span;
  });
  response.append(...spans);
  box.replaceChildren(prompt, response);
  box.scrollTop = 0;
  let current = null;
  const columnOf = (event) => event.target.column;
  response.onpointerover = (event) => columnOf(event) !== undefined && event.pointerType !== "touch" && act.hover(null, columnOf(event));
  response.onclick = (event) => columnOf(event) !== undefined && act.lock(null, columnOf(event));

  function paint(steps, colours) {
    spans.forEach((span, column) => {
      const step = steps(column);
      span.style.setProperty("--lg-tint", step < 0 ? "transparent" : colours[step].colour);
    });
  }

  function point(column, reveal) {
    if (current) current.classList.remove("lg-on");
    current = spans[column];
    current.classList.add("lg-on");
    if (!reveal) return;
    const top = current.offsetTop;
    if (top < box.scrollTop || top + current.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 2;
  }
  if (payload.prompt.length) box.scrollTop = Math.max(0, response.offsetTop - 40);
  return { paint, point };
}
