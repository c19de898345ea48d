
"use strict";
// The number that a text of the pages says: "1,234", "−0.5", "8.6 × 10⁻⁵", "5.97 %".
const numberIn = (text) => {
  const [digits, power] = text.replaceAll(",", "").replace("−", "-").split(" × 10");
  const raised = power ? [...power.split(" ")[0]].map((sign) => "-0123456789"["⁻⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(sign)]).join("") : 0;
  return parseFloat(digits) * 10 ** Number(raised);
};
(() => {
  // What a word means: shown when one points at it, taps it or reaches it with the keyboard.
  const tip = document.createElement("div");
  tip.id = "meaning";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  let shown = null;
  const hide = () => { tip.hidden = true; shown = null; };
  const show = (word) => {
    shown = word;
    tip.textContent = word.dataset.meaning;
    tip.hidden = false;
    const box = word.getBoundingClientRect();
    const [width, height] = [document.documentElement.clientWidth, document.documentElement.clientHeight];
    const below = box.bottom + 6;
    tip.style.left = `${Math.max(8, Math.min(box.left, width - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below + tip.offsetHeight > height ? Math.max(8, box.top - tip.offsetHeight - 6) : below}px`;
  };
  for (const word of document.querySelectorAll("dfn[title], button[title]")) {
    word.dataset.meaning = word.title;
    word.setAttribute("aria-description", word.title);
    word.removeAttribute("title");
    for (const event of ["mouseenter", "focus", "click"]) word.addEventListener(event, () => show(word));
    for (const event of ["mouseleave", "blur"]) word.addEventListener(event, hide);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", () => { if (shown) show(shown); }, { passive: true });

  // Buttons that copy: a text of the page, its address, or all of its contexts as JSON.
  const contexts = (about) => [...document.querySelectorAll(".examples li")].map((line) => {
    const context = line.querySelector(".context"), title = line.querySelector(".of");
    return {
      ...about, kind: line.dataset.kind, activation: Number(line.dataset.value),
      document: Number(line.dataset.document), position: Number(line.dataset.position), title: title ? title.textContent : null,
      text: context.textContent, active: [...context.querySelectorAll("mark")].map((mark) => [mark.textContent, numberIn(mark.dataset.v)]),
    };
  });
  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea"); // where the browser has no clipboard: a page over plain http
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("the browser does not let this page copy");
  };
  const bar = document.getElementById("copies");
  if (!bar) return;
  const texts = JSON.parse(document.getElementById("texts").textContent), said = bar.querySelector("[role=status]");
  bar.hidden = false;
  for (const button of bar.querySelectorAll("button")) {
    button.addEventListener("click", async () => {
      const what = button.dataset.copy;
      const made = { link: () => location.href, contexts: () => JSON.stringify(contexts(texts.about), null, 1) };
      try {
        await copy(made[what] ? made[what]() : texts[what]);
        said.textContent = `Copied: ${button.textContent}.`;
      } catch (error) {
        said.textContent = `Not copied: ${error.message}.`;
      }
    });
  }
})();
