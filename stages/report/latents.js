// Search and sort over the data that stand in the page. Everything from a text is set as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [body, query, state, sort, more, count] = ["#table tbody", "#query", "#state", "#sort", "#more", "#count"].map(
    (place) => document.querySelector(place),
  );
  const heads = [...document.querySelectorAll("th [data-sort]")];
  const total = data.text.length;
  const pages = new Set(data.pages);
  const columns = { ...data, id: Array.from({ length: total }, (_, id) => id) };
  const step = 100;
  let falling = true;
  let found = [];
  let shown = 0;

  // What a search looks through, made on the first one.
  let hay = null;
  const haystack = () =>
    (hay ??= data.text.map((text, id) =>
      `${id} ${text} ${data.tokens[id]} ${data.context[id] ? data.context[id].join("") : ""}`.toLowerCase(),
    ));

  const number = (value) => {
    if (value === null || value === undefined) return "–";
    if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6)) return value.toExponential(1);
    return Math.abs(value) >= 1000
      ? Math.round(value).toLocaleString("en")
      : String(parseFloat(value.toPrecision(3)));
  };

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  const row = (id) => {
    const line = element("tr");
    const name = element("td", undefined, "id");
    if (pages.has(id)) {
      const link = element("a", id);
      link.href = `${id}.html`;
      name.append(link);
    } else name.append(id);
    const status = data.states[data.state[id]];
    if (status !== "kept") name.append(element("span", status, status === "dead" ? "flag bad" : "flag"));

    const cell = element("td", undefined, "words");
    cell.append(element("span", data.text[id], "text"));
    if (data.context[id]) {
      const [before, peak, after] = data.context[id];
      const context = element("span", before, "context");
      context.append(element("mark", peak, "a6"), after);
      cell.append(context);
    }
    line.append(name, cell, element("td", number(data.importance[id]), "num"));
    line.append(element("td", data.density[id] ? `${number(100 * data.density[id])} %` : "–", "num broad"));
    line.append(element("td", number(data.mean[id]), "num broad"), element("td", number(data.max[id]), "num broad"));
    const score = element("td", number(data.score[id]), "num broad");
    if (data.chance[id] !== null) score.append(element("small", `chance ${number(data.chance[id])}`));
    line.append(score);
    return line;
  };

  const extend = () => {
    const rows = document.createDocumentFragment();
    for (const id of found.slice(shown, shown + step)) rows.append(row(id));
    body.append(rows);
    shown = Math.min(shown + step, found.length);
    more.hidden = shown === found.length;
  };

  const update = () => {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const exact = words.length === 1 && /^#?\d+$/.test(words[0]) ? Number(words[0].replace("#", "")) : null;
    const only = words.length === 1 && words[0].startsWith("#");
    const texts = words.length ? haystack() : null;
    const wanted = state.value || (words.length ? "all" : "0");
    const within = (id) =>
      wanted === "all" || (wanted === "page" ? pages.has(id) : data.state[id] === Number(wanted));
    found = columns.id.filter(
      (id) => within(id) && (id === exact || (!only && words.every((word) => texts[id].includes(word)))),
    );
    const keys = columns[sort.value];
    const sign = falling ? -1 : 1;
    const last = (value) => value === null || value === undefined;
    found.sort((a, b) => {
      if ((a === exact) !== (b === exact)) return a === exact ? -1 : 1; // the id that was typed comes first
      if (last(keys[a]) || last(keys[b])) return last(keys[a]) - last(keys[b]) || a - b;
      return sign * (keys[a] - keys[b]) || a - b;
    });
    for (const head of heads) {
      const here = head.dataset.sort === sort.value;
      head.parentElement.setAttribute("aria-sort", here ? (falling ? "descending" : "ascending") : "none");
    }
    count.textContent = found.length === total ? `${total.toLocaleString("en")} latents` : `${found.length.toLocaleString("en")} of ${total.toLocaleString("en")} latents`;
    body.replaceChildren();
    shown = 0;
    extend();
  };

  const by = (name, down) => {
    sort.value = name;
    falling = down;
    update();
  };
  for (const head of heads) {
    const name = head.dataset.sort;
    head.addEventListener("click", () => by(name, sort.value === name ? !falling : name !== "id"));
  }
  sort.addEventListener("change", () => by(sort.value, sort.value !== "id"));
  state.addEventListener("change", update);
  query.addEventListener("input", update);
  more.addEventListener("click", extend);
  new IntersectionObserver((seen) => {
    if (seen.some((entry) => entry.isIntersecting) && !more.hidden) extend();
  }, { rootMargin: "600px" }).observe(more);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== query) {
      event.preventDefault();
      query.focus();
    }
  });

  // index.html#42 is the way to a latent without a page.
  const hash = () => {
    const id = /^#(\d+)$/.exec(location.hash);
    if (id) query.value = `#${id[1]}`;
    update();
  };
  addEventListener("hashchange", hash);
  hash();
})();
