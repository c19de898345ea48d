// What the pages of the server share.
const at = id => document.getElementById(id);
const make = (tag, text = "", name = "") => Object.assign(document.createElement(tag), {textContent: text, className: name});

// The body of an answer to JSON; an Error with the server's sentence where it refuses.
async function asked(path, given, signal) {
  const headers = {"Content-Type": "application/json"}, token = at("token")?.value;
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, {method: "POST", headers, body: JSON.stringify(given), signal});
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? `${answer.status} ${answer.statusText}`);
  return answer;
}

// A latent's number, as a link to its page where it has one.
let pages = null;
let opens = "_self";  // "_blank" on a page whose contents would be lost
const numbered = latent => {
  const number = make(pages === null ? "strong" : "a", latent.latent);
  if (pages !== null) Object.assign(number, {href: `${pages}/${latent.latent}.html`, target: opens, className: "latent"});
  return number;
};

// How a latent is called in a list.
const called = latent => latent.name ?? "no name yet";

// A latent's hit of /search, with what `more` adds behind it.
function hit(found, ...more) {
  const row = make("li"), words = make("span", "", "name");
  words.append(numbered(found), ` ${called(found)}`, make("br"), make("small", found.context));
  row.append(words, make("small", `cosine ${found.cosine.toFixed(2)} to its ${found.by}`), ...more);
  return row;
}

// Fills the list `into` with what /search finds.
async function search(query, into, say, top_n, row = hit) {
  say.className = "busy";
  say.textContent = "looking… (the first time, all latents are embedded: half a minute or more)";
  try {
    const found = await (await asked("search", {query, top_n})).json();
    into.replaceChildren(...found.map(latent => row(latent)));
    say.textContent = found.length ? "" : "Nothing is known of any latent.";
    say.className = "";
  } catch (error) {
    say.className = "wrong";
    say.textContent = error.message;
  }
}

fetch("health").then(answer => answer.json()).then(facts => {
  at("facts").textContent = `${facts.latents.toLocaleString("en")} latents on ${facts.model ?? "vectors"}${facts.hook ? `, ${facts.hook}` : ""}`;
  if (facts.pages && facts.layer !== null) pages = `./pages/${facts.layer}`;
  for (const link of document.querySelectorAll("[data-pages]")) link.hidden = !facts.pages;
  for (const field of document.querySelectorAll("[data-guarded]")) field.hidden = !facts.guarded;
  for (const link of document.querySelectorAll("[data-writes]")) link.hidden = facts.reads !== "tokens";
  document.dispatchEvent(new CustomEvent("facts", {detail: facts}));
}).catch(() => at("facts").textContent = "The server does not answer.");
