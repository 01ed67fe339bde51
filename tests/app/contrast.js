// The contrast (WCAG 2.2) of every visible text of the page with what is behind it.
() => {
  const parts = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const over = ({ rgb, a }, below) => rgb.map((part, at) => part * a + below[at] * (1 - a));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parent = (element) => element.parentElement ?? element.getRootNode().host;
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    return over(parts(getComputedStyle(element).backgroundColor), behind(parent(element)));
  };
  const opacity = (element) => element ? getComputedStyle(element).opacity * opacity(parent(element)) : 1;
  const found = [];
  const visit = (root) => {
    for (const element of root.querySelectorAll("*")) {
      if (element.shadowRoot) visit(element.shadowRoot);
      const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
      const drawn = element.getBoundingClientRect();
      const off = opacity(element) < 0.6 || element.closest(":disabled, [aria-disabled=true], style, script, .modebar");
      if (!text || off || !drawn.width || getComputedStyle(element).visibility === "hidden") continue;
      if (element.closest("[data-testid=stIconMaterial], pre")) continue; // pictures, and the colours of code
      const style = getComputedStyle(element);
      const colour = parts(element instanceof SVGElement ? style.fill : style.color);
      const ground = behind(element instanceof SVGElement ? element.closest("svg").parentElement : element);
      colour.a *= opacity(element);
      const [low, high] = [luminance(over(colour, ground)), luminance(ground)].sort((a, b) => a - b);
      found.push({ text: text.slice(0, 60), contrast: (high + 0.05) / (low + 0.05), colour: style.color });
    }
  };
  visit(document);
  return found;
}
