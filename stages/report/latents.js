// Search and sort over the data that stand in the page. Everything from a text is set as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const places = ["#table tbody", "#query", "#state", "#sort", "#more", "#count", "#how"];
  const [body, query, state, sort, more, count, how] = places.map((place) => document.querySelector(place));
  const heads = [...document.querySelectorAll("th [data-sort]")];
  const total = data.text.length;
  const pages = new Set(data.pages);
  const ids = Array.from({ length: total }, (_, id) => id);
  const keyOf = { id: ids, interest: data.place.map((place) => -place) }; // interest by its order, which has no ties
  const keys = (name) => (keyOf[name] ??= data[name].map((text) => numberIn(text))); // NaN where there is none
  const step = 100;
  let falling = true;
  let found = [];
  let shown = 0;

  // What a search looks through, made on the first one: the name, the tokens and the context of each latent.
  let hay = null;
  const haystack = () =>
    (hay ??= data.text.map((text, id) =>
      [text, data.tokens[id], data.context[id] ? data.context[id].join("") : ""].map((part) => part.toLowerCase()),
    ));
  let sought = []; // the words of the search

  // How well a word fits a text: 1 as a word of it, 0.8 as the beginning of one, 0.5 as a part, 0: not at all.
  const letter = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);
  const fit = (text, word) => {
    let best = 0;
    for (let place = text.indexOf(word); place >= 0 && best < 1; place = text.indexOf(word, place + 1)) {
      const begins = !letter(text[place - 1]);
      best = Math.max(best, begins ? (letter(text[place + word.length]) ? 0.8 : 1) : 0.5);
    }
    return best;
  };
  // How well a latent matches: by its name, which counts most, its tokens or its context; the word that fits worst counts.
  const match = (id) => {
    let least = 9;
    for (const word of sought) {
      const [name, tokens, context] = haystack()[id];
      const fits = [fit(context, word), fit(tokens, word), fit(name, word)];
      const best = String(id) === word ? 4 : Math.max(...fits.map((how, place) => (how ? place + how : 0)));
      if (!best) return 0;
      least = Math.min(least, best);
    }
    return least;
  };

  // Put a text into an element, with the words of the search marked.
  const write = (parent, text) => {
    const lower = text.toLowerCase();
    const same = lower.length === text.length; // not so of every language: then nothing is marked
    let from = 0;
    while (from < text.length) {
      let hit = text.length;
      let length = 0;
      for (const word of same ? sought : []) {
        const place = lower.indexOf(word, from);
        if (place >= 0 && (place < hit || (place === hit && word.length > length))) [hit, length] = [place, word.length];
      }
      parent.append(text.slice(from, hit));
      if (length) parent.append(element("mark", text.slice(hit, hit + length), "hit"));
      from = hit + length;
    }
    return parent;
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
    const link = element("a", id, pages.has(id) ? undefined : "unwritten");
    link.href = pages.has(id) ? `${id}.html` : `#${id}`;
    name.append(link);
    const status = data.states[data.state[id]];
    if (status !== "kept") name.append(element("span", status, status === "dead" ? "flag bad" : "flag"));

    const cell = element("td", undefined, "words");
    if (data.text[id]) cell.append(write(element("span", undefined, "text"), data.text[id]));
    else if (status !== "dead") cell.append(element("span", "no name yet", "text soft"));
    if (data.context[id]) {
      const [before, peak, after] = data.context[id];
      const context = write(element("span", undefined, "context"), before);
      if (peak) context.append(write(element("mark", undefined, "a6"), peak));
      cell.append(write(context, after));
    }
    line.append(name, cell, element("td", data.interest[id], "num"));
    for (const column of ["importance", "density", "mean", "max"]) line.append(element("td", data[column][id], "num broad"));
    const score = element("td", data.score[id], "num broad");
    if (data.score[id] !== "–") score.append(element("small", `chance ${data.chance[id]}`));
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
    sought = only ? [] : words;
    const wanted = state.value || (words.length ? "all" : "0");
    const within = (id) =>
      wanted === "all" || (wanted === "page" ? pages.has(id) : data.state[id] === Number(wanted));
    const matches = new Map();
    for (const id of ids) {
      const how = id === exact ? 9 : only ? 0 : words.length ? match(id) : 1;
      if (how && (within(id) || id === exact)) matches.set(id, how);
    }
    found = [...matches.keys()];
    const values = keys(sort.value);
    const sign = falling ? -1 : 1;
    found.sort((a, b) => {
      if (matches.get(a) !== matches.get(b)) return matches.get(b) - matches.get(a); // the best match first
      if (isNaN(values[a]) || isNaN(values[b])) return isNaN(values[a]) - isNaN(values[b]) || a - b;
      return sign * (values[a] - values[b]) || data.place[a] - data.place[b];
    });
    for (const head of heads) {
      const here = head.dataset.sort === sort.value;
      head.parentElement.setAttribute("aria-sort", here ? (falling ? "descending" : "ascending") : "none");
    }
    const part = found.length === total ? "" : `${found.length.toLocaleString("en")} of `;
    count.textContent = `${part}${total.toLocaleString("en")} latents${words.length ? ", the best match first" : ""}`;
    body.replaceChildren();
    shown = 0;
    extend();
    // A latent asked for by its number that has no page: how to see it.
    how.hidden = exact === null || !matches.has(exact) || pages.has(exact);
    if (!how.hidden) for (const place of how.querySelectorAll(".asked")) place.textContent = exact;
    if (!found.length) {
      const elsewhere = state.value && state.value !== "all" ? " Show all to search in every latent." : "";
      const sentence = element("td", `No latent's name, tokens or strongest context has “${query.value}”.${elsewhere}`);
      sentence.colSpan = 8;
      const line = element("tr");
      line.append(sentence);
      body.append(line);
    }
  };

  // The address says what is shown, so that a link can be sent: #q=army&show=all&sort=density&rising
  const remember = () => {
    const said = new URLSearchParams();
    if (query.value) said.set("q", query.value);
    if (state.value) said.set("show", state.value === "all" || state.value === "page" ? state.value : data.states[Number(state.value)]);
    if (sort.value !== sort.options[0].value) said.set("sort", sort.value);
    if (falling !== (sort.value !== "id")) said.set("order", falling ? "falling" : "rising");
    history.replaceState(null, "", said.size ? `#${said}` : location.pathname + location.search);
  };
  const change = () => {
    update();
    remember();
  };

  const by = (name, down) => {
    sort.value = name;
    falling = down;
    change();
  };
  for (const head of heads) {
    const name = head.dataset.sort;
    head.addEventListener("click", () => by(name, sort.value === name ? !falling : name !== "id"));
  }
  sort.addEventListener("change", () => by(sort.value, sort.value !== "id"));
  state.addEventListener("change", change);
  query.addEventListener("input", change);
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

  // index.html#42 shows one latent, with how to see more of one that has no page.
  const hash = () => {
    const id = /^#(\d+)$/.exec(location.hash);
    const said = new URLSearchParams(id ? "" : location.hash.slice(1));
    query.value = id ? `#${id[1]}` : (said.get("q") ?? "");
    const show = said.get("show") ?? "";
    const place = data.states.indexOf(show);
    state.value = place >= 0 ? String(place) : show;
    if (state.selectedIndex < 0) state.value = "";
    sort.value = said.get("sort") ?? sort.options[0].value;
    if (sort.selectedIndex < 0) sort.selectedIndex = 0;
    falling = said.has("order") ? said.get("order") === "falling" : sort.value !== "id";
    update();
  };
  addEventListener("hashchange", hash);
  hash();
})();
