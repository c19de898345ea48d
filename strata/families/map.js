"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(at(id).textContent);
  const data = read("data"), site = read("site"); // site: null where the map stands alone, without the latents' pages
  if (site) data.text = data.text.map((text, i) => site.names[data.id[i]] ?? text);
  const pages = new Set(site ? site.pages : []), selected = new Set(data.selected);
  const [stage, canvas, tip, card, query, paint] = ["stage", "map", "tip", "card", "query", "colour"].map(at);
  const pen = canvas.getContext("2d");
  const total = data.id.length, all = [...data.id.keys()];
  const placeOf = new Map(data.id.map((id, i) => [id, i]));
  const familyColour = new Map(data.coloured.map((cluster, place) => [cluster, data.colours[place]]));
  const view = { zoom: 1, x: 0, y: 0 };
  let family = null, latent = null, found = null, pointed = null; // what is chosen, searched for and pointed at
  let size = 1, left = 0, top = 0;

  const members = data.names.map(() => []);
  for (const i of all) if (data.cluster[i] >= 0) members[data.cluster[i]].push(i);
  const middle = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  const centre = members.map((group) => (group.length ? [middle(group.map((i) => data.x[i])), middle(group.map((i) => data.y[i]))] : null));

  // --- colours ---

  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis: dark is little
  const ramp = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), low = Math.min(Math.floor(place), RAMP.length - 2);
    return `rgb(${RAMP[low].map((from, n) => Math.round(from + (place - low) * (RAMP[low + 1][n] - from))).join(" ")})`;
  };
  const known = (values) => values.filter((value) => value !== null && value > 0);
  const [least, most] = [Math.min(...known(data.density)), Math.max(...known(data.density))];
  const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;
  const near = (i) => new Map(data.near[i].map((id, place) => [placeOf.get(id), data.cosine[i][place]]));
  let beside = new Map(); // the neighbours of the chosen latent: its number among the points -> cosine
  const colours = {
    family: (i) => familyColour.get(data.cluster[i]),
    density: (i) => ramp(Math.log(data.density[i] / least) / Math.log(most / least || 1)),
    score: (i) => (data.score[i] === null ? undefined : ramp(2 * (data.score[i] - 0.5))),
    near: (i) => (i === latent ? style("--hit") : beside.has(i) ? ramp(beside.get(i)) : undefined),
  };
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

  // --- the picture ---

  const filtered = () => family !== null || found !== null || (paint.value === "near" && latent !== null);
  const lit = (i) =>
    (family === null || data.cluster[i] === family) && (found === null || found.has(i)) &&
    (paint.value !== "near" || latent === null || i === latent || beside.has(i));
  const where = (x, y) => [left + (x * view.zoom + view.x) * size, top + (y * view.zoom + view.y) * size];

  const draw = () => {
    const box = stage.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    canvas.width = box.width * ratio;
    canvas.height = box.height * ratio;
    size = Math.min(box.width, box.height) - 48;
    left = (box.width - size) / 2;
    top = (box.height - size) / 2;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, box.width, box.height);
    const [rest, ink, hit] = ["--rest", "--ink", "--hit"].map(style);
    const some = filtered();
    const circle = (i, radius) => {
      pen.beginPath();
      pen.arc(...where(data.x[i], data.y[i]), radius, 0, 7);
    };
    const ring = (i, radius, width, colour) => {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      circle(i, radius);
      pen.stroke();
    };
    const colourOf = all.map(colours[paint.value]), isLit = all.map(lit);
    const weight = all.map((i) => (isLit[i] ? 2 : 0) + (colourOf[i] ? 1 : 0)); // what stands out is drawn last
    for (const i of [...all].sort((a, b) => weight[a] - weight[b])) {
      const on = isLit[i], colour = colourOf[i];
      pen.globalAlpha = on ? 1 : 0.3;
      pen.fillStyle = on ? (colour ?? (some ? hit : rest)) : rest;
      circle(i, some ? (on ? 4 : 1.5) : colour ? 3 : 2);
      pen.fill();
      pen.globalAlpha = on ? 1 : 0.15;
      if (selected.has(data.id[i])) ring(i, 7, 1.2, ink);
    }
    pen.globalAlpha = 1;
    label(box, ink, style("--paper"));
    for (const i of [pointed, latent]) if (i !== null) ring(i, 9, 2.5, hit);
  };

  // Names of families in their middle: the coloured and the largest first, and none over another.
  const named = [...new Set([...data.coloured, ...data.names.keys()])].filter(
    (cluster) => members[cluster].length > 2 && /[\p{L}\p{N}]/u.test(data.names[cluster]) && !data.names[cluster].startsWith("like latent"),
  );
  const label = (box, ink, paper) => {
    const taken = [], most = 36 * view.zoom;
    pen.font = "600 12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.lineJoin = "round";
    pen.lineWidth = 4;
    for (const cluster of named) {
      if (taken.length >= most) break;
      if (filtered() && !members[cluster].some(lit)) continue;
      const text = data.names[cluster].length > 22 ? `${data.names[cluster].slice(0, 21)}…` : data.names[cluster];
      const [x, middle] = where(...centre[cluster]), y = middle - 8, half = pen.measureText(text).width / 2 + 5;
      if (x - half < 0 || x + half > box.width || y < 16 || y > box.height - 8) continue;
      if (taken.some(([a, b, c]) => Math.abs(a - x) < half + c && Math.abs(b - y) < 18)) continue;
      taken.push([x, y, half]);
      pen.strokeStyle = paper;
      pen.strokeText(text, x, y);
      pen.fillStyle = ink;
      pen.fillText(text, x, y);
    }
  };

  // --- what stands beside it ---

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const button = (text, kind, act) => {
    const made = element("button", text, kind);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  };
  const said = (i) => data.text[i] || "no name yet";
  const number = (id) => {
    if (!site) return element("span", id, "id");
    const link = element("a", id);
    link.href = pages.has(id) ? `${id}.html` : `#latent=${id}`;
    return link;
  };
  const line = (i, note) => { // a latent in a list: its number leads to its page, its name to its place
    const made = element("li");
    made.append(number(data.id[i]), button(said(i), "", () => choose(i)));
    if (note) made.append(element("span", note, "size"));
    made.addEventListener("mouseenter", () => { pointed = i; draw(); });
    made.addEventListener("mouseleave", () => { pointed = null; draw(); });
    return made;
  };
  const list = (lines) => {
    const made = element("ol");
    made.append(...lines);
    return made;
  };

  const describe = () => {
    card.hidden = latent === null && family === null;
    card.replaceChildren(button("✕", "close", () => { latent = family = null; change(); }));
    card.firstChild.setAttribute("aria-label", "Close");
    if (latent !== null) {
      const id = data.id[latent], cluster = data.cluster[latent];
      card.append(element("h2", `Latent ${id}`), element("p", said(latent)));
      const score = data.score[latent] === null ? "" : `, score ${Number(data.score[latent].toPrecision(3))}`;
      card.append(element("p", `density ${percent(data.density[latent])}${score}${selected.has(id) ? ", selected" : ""}`, "note"));
      if (site) card.append(...way(id));
      if (cluster >= 0) {
        const line = element("p", "Family: ");
        line.append(button(`${data.names[cluster]} (${data.sizes[cluster]})`, "inline", () => { latent = null; family = cluster; change(); }));
        card.append(line);
      }
      if (data.near[latent].length) {
        card.append(element("h2", "Nearest"), list([...near(latent)].map(([i, cosine]) => line(i, cosine.toFixed(2)))));
      }
    } else if (family !== null) {
      const group = members[family];
      card.append(element("h2", `Family: ${data.names[family]}`), element("p", `${group.length} latents`, "note"));
      card.append(list(group.slice(0, 200).map((i) => line(i, data.id[i] === data.medoids[family] ? "medoid" : ""))));
      if (group.length > 200) card.append(element("p", `${group.length - 200} more`, "note"));
    }
  };
  // How to see a latent: its page, or what makes one.
  const way = (id) => {
    const page = element("p");
    const link = element("a", pages.has(id) ? "Its page" : "In the index");
    link.href = pages.has(id) ? `${id}.html` : `index.html#${id}`;
    page.append(link);
    if (pages.has(id)) return [page];
    const how = element("p", "No page as a file. ", "note");
    how.append(element("code", `make serve LAYER=${data.layer}`), " makes it; ", element("code", `python -m src.show ${data.layer} ${id}`), " prints it.");
    return [page, how];
  };

  const explain = () => {
    const legend = at("legend"), scale = element("div", undefined, "scale"), ends = element("div", undefined, "ends");
    scale.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(ramp).join(", ")})`;
    const rings = selected.size ? ` A ring: one of the ${selected.size} latents that inversion and steering take first.` : "";
    const words = {
      family: `Colours: the ${data.coloured.length} clearest and most interesting of ${data.names.length} families; grey: all others.`,
      density: "Colour: the share of tokens on which it is active, on a logarithmic scale.",
      score: "Colour: balanced accuracy of its best explanation; grey: without one.",
      near: latent === null ? "Choose a latent: click a point, or search for its number." : `Colour: cosine with latent ${data.id[latent]} of its nearest, as far as they are stored.`,
    };
    const bounds = { density: [percent(least), percent(most)], score: ["0.5 is guessing", "1"], near: ["0", "1"] }[paint.value];
    legend.replaceChildren(words[paint.value] + rings);
    if (!bounds || (paint.value === "near" && latent === null)) return;
    ends.append(...bounds.map((bound) => element("span", bound)));
    legend.append(scale, ends);
  };

  // --- search: whole words before beginnings before parts, names of latents before names of families ---

  const letter = (sign) => sign !== undefined && /[\p{L}\p{N}]/u.test(sign);
  const fit = (text, word) => {
    let best = 0;
    for (let place = text.indexOf(word); place >= 0 && best < 1; place = text.indexOf(word, place + 1)) {
      best = Math.max(best, letter(text[place - 1]) ? 0.5 : letter(text[place + word.length]) ? 0.8 : 1);
    }
    return best;
  };
  const fits = (i, words) => {
    const own = data.text[i].toLowerCase(), shared = data.cluster[i] < 0 ? "" : data.names[data.cluster[i]].toLowerCase();
    return Math.min(...words.map((word) => (String(data.id[i]) === word ? 3 : fit(own, word) ? 1 + fit(own, word) : fit(shared, word))));
  };
  const search = () => {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fitting = words.length ? all.map((i) => [i, fits(i, words)]).filter(([, fit]) => fit) : [];
    const whole = fitting.filter(([, fit]) => fit % 1 !== 0.5); // "war" finds "award" only where no word begins so
    const how = new Map(whole.length ? whole : fitting);
    found = words.length ? new Set([...how.keys()].sort((a, b) => how.get(b) - how.get(a) || a - b)) : null;

    const hits = found ? [...found].slice(0, 100) : [];
    at("hits").replaceChildren(...hits.map((i) => line(i, "")));
    at("count").textContent = !found ? "" : found.size === 0 ? `No name of a latent or a family has “${query.value}”.` :
      `${found.size} of ${total} latents${found.size > hits.length ? `, of which these ${hits.length} fit best` : ""}.`;

    const inside = new Map();
    for (const i of found ?? []) inside.set(data.cluster[i], (inside.get(data.cluster[i]) || 0) + 1);
    const order = [...new Set([...data.coloured, ...data.names.keys()])].filter((cluster) => !found || inside.has(cluster));
    at("heading").textContent = found ? `Families with a hit: ${order.length}` : `Families: ${order.length}`;
    at("families").replaceChildren(...order.slice(0, 300).map((cluster) => {
      const made = element("li"), dot = element("span", undefined, "dot");
      if (paint.value === "family" && familyColour.has(cluster)) dot.style.background = familyColour.get(cluster);
      const name = button(data.names[cluster], "", () => { latent = null; family = family === cluster ? null : cluster; change(); });
      name.setAttribute("aria-pressed", String(cluster === family));
      made.append(dot, name, element("span", found ? `${inside.get(cluster)} of ${data.sizes[cluster]}` : data.sizes[cluster], "size"));
      return made;
    }));
  };

  // --- what is chosen, and the address that says so: #q=army&colour=density&family=3&latent=42 ---

  const update = () => {
    beside = latent === null ? new Map() : near(latent);
    describe();
    explain();
    search();
    draw();
  };
  const change = () => {
    update();
    const address = new URLSearchParams();
    if (query.value) address.set("q", query.value);
    if (paint.value !== "family") address.set("colour", paint.value);
    if (family !== null) address.set("family", family);
    if (latent !== null) address.set("latent", data.id[latent]);
    history.replaceState(null, "", address.size ? `#${address}` : location.pathname + location.search);
  };
  const choose = (i) => {
    latent = i;
    if (i !== null && family !== data.cluster[i]) family = null;
    const [x, y] = i === null ? [0.5, 0.5] : [data.x[i] * view.zoom + view.x, data.y[i] * view.zoom + view.y];
    if (x < 0 || x > 1 || y < 0 || y > 1) Object.assign(view, { x: view.x + 0.5 - x, y: view.y + 0.5 - y }); // into view
    change();
  };
  const hash = () => {
    const address = new URLSearchParams(location.hash.slice(1));
    query.value = address.get("q") ?? "";
    paint.value = address.get("colour") ?? "family";
    if (paint.selectedIndex < 0) paint.value = "family";
    const cluster = Number(address.get("family") ?? NaN);
    family = cluster in data.names ? cluster : null;
    latent = placeOf.get(Number(address.get("latent") ?? NaN)) ?? null;
    update();
  };
  query.addEventListener("input", change);
  paint.addEventListener("change", change);
  addEventListener("hashchange", hash);

  // --- pointing, moving, zooming ---

  const nearest = (event) => {
    const box = stage.getBoundingClientRect();
    let best = null, close = 14 * 14;
    for (const i of all) {
      const [x, y] = where(data.x[i], data.y[i]), away = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
      if (away < close && lit(i)) [best, close] = [i, away];
    }
    return best;
  };
  const show = (event) => {
    const i = nearest(event);
    tip.hidden = i === null;
    if (i === null) return;
    const cluster = data.cluster[i];
    tip.replaceChildren(element("b", `latent ${data.id[i]}`), element("i", cluster < 0 ? "in no family" : `${data.names[cluster]} (${data.sizes[cluster]})`), said(i));
    const [x, y] = where(data.x[i], data.y[i]), box = stage.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 12, box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 12, box.height - tip.offsetHeight - 4))}px`;
  };
  const zoomBy = (factor, clientX, clientY) => { // about a place on the screen; without one, about the middle
    const box = stage.getBoundingClientRect();
    const [x, y] = [((clientX ?? box.left + box.width / 2) - box.left - left) / size, ((clientY ?? box.top + box.height / 2) - box.top - top) / size];
    const zoom = Math.min(40, Math.max(0.5, view.zoom * factor)), real = zoom / view.zoom;
    Object.assign(view, factor ? { zoom, x: x - (x - view.x) * real, y: y - (y - view.y) * real } : { zoom: 1, x: 0, y: 0 });
    draw();
  };
  const moveBy = (dx, dy) => {
    view.x += dx / size;
    view.y += dy / size;
    draw();
  };

  const down = new Map(); // pointers that touch the map: one moves it, two zoom
  let moved = false;
  canvas.addEventListener("pointerdown", (event) => {
    moved = down.size > 0;
    down.set(event.pointerId, [event.clientX, event.clientY]);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const from = down.get(event.pointerId);
    if (!from) return show(event);
    const [dx, dy] = [event.clientX - from[0], event.clientY - from[1]];
    if (!moved && Math.hypot(dx, dy) < 4) return;
    moved = true;
    tip.hidden = true;
    down.set(event.pointerId, [event.clientX, event.clientY]);
    const other = [...down].find(([pointer]) => pointer !== event.pointerId);
    if (!other) return moveBy(dx, dy);
    const [x, y] = other[1];
    zoomBy(Math.hypot(event.clientX - x, event.clientY - y) / Math.max(Math.hypot(from[0] - x, from[1] - y), 1), x, y);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (down.delete(event.pointerId) && !moved) choose(nearest(event));
  });
  canvas.addEventListener("pointercancel", (event) => down.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }, { passive: false });
  for (const one of document.querySelectorAll("[data-zoom]")) one.addEventListener("click", () => zoomBy(Number(one.dataset.zoom)));
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }, zooms = { "+": 1.5, "-": 1 / 1.5, 0: 0 };
    if (event.key in moves) moveBy(...moves[event.key]);
    else if (event.key in zooms && !event.ctrlKey && !event.metaKey) zoomBy(zooms[event.key]);
    else return;
    event.preventDefault();
  });

  // --- on paper it is light; among the latents' pages it leads back to them ---

  addEventListener("beforeprint", () => { document.documentElement.dataset.paper = ""; draw(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.paper; draw(); });
  if (site) {
    const places = [["Report", "../../report.html"], ["Layers", "../index.html"], [`Layer ${data.layer}`, "index.html"]];
    const back = at("back");
    for (const [name, place] of places) {
      const link = element("a", name);
      link.href = place;
      back.append(link, " › ");
    }
    back.append("Map");
    back.hidden = false;
  }
  new ResizeObserver(draw).observe(stage);
  hash();
})();
