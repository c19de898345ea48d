"""How the example inputs beside this file were made: `PYTHONPATH=. python recipes/data/make.py`, from the root.

All texts are made up. Embeddings are those of the packaged MiniLM; only their first 16 principal components are kept,
so that the files are small.
"""

import csv
import random
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import strata

HERE = Path("recipes/data")
WIDTH, LATENTS, K = 16, 64, 4
WHO = ["Hello", "Hi there", "Good morning", "Dear team", "Hi", "To whom it may concern", "Good evening", "Hey"]
THINGS = ["backpack", "winter jacket", "coffee grinder", "desk lamp", "running shoes", "tent", "headphones", "kettle"]
DAYS = ["Monday", "last Tuesday", "three days ago", "yesterday", "a week ago", "the 4th of May", "this morning"]
ENDS = ["Thank you.", "Please help.", "What can I do?", "Could you look into this?", "Best wishes.", "I am waiting."]
MESSAGES = {
    "delivery": [
        "the parcel with my {thing} was sent {day}, but the tracking page still says that it is in the depot.",
        "my {thing} should have arrived {day}. The driver rang at the neighbour's door and left nothing.",
        "the carrier says that the {thing} was delivered {day}, yet there is no parcel in front of my house.",
    ],
    "refund": [
        "I sent the {thing} back {day} and still wait for my money. The bank has seen no transfer from you.",
        "you promised {day} to refund the full price of the {thing}, but only half of it came back to my card.",
        "when do I get the refund for the {thing}? The return was accepted {day}.",
    ],
    "login": [
        "since {day} I cannot log in to see my order of a {thing}; the page says that my password is wrong.",
        "I asked {day} for a new password, and the link in the mail had expired before I opened it.",
        "my account was locked {day} after I typed the password twice, and now I cannot order the {thing}.",
    ],
    "invoice": [
        "the invoice for my {thing} from {day} has the wrong address, and my office needs a corrected one.",
        "I was charged twice for one {thing} {day}. Please send a bill with the right sum.",
        "could you send the invoice of {day} for the {thing} as a file, with the tax shown by itself?",
    ],
    "damaged": [
        "the {thing} came {day} with a long scratch and a broken handle, although the box looked fine.",
        "I unpacked the {thing} {day}, and one part is cracked. I can send you photos of the damage.",
        "after one day of use the {thing}, which came {day}, does not switch on any more.",
    ],
    "size": [
        "the {thing} that I ordered {day} is too small for me. Can I change it for a larger size?",
        "your table of sizes is wrong: the {thing} from {day} is much wider than it says.",
        "I need the same {thing} as {day} in a smaller size and in blue, if you have it.",
    ],
}
PLACES = ["Lisbon", "Oslo", "Nairobi", "Lima", "Osaka", "Quito", "Vienna", "Perth", "Accra", "Bergen"]
HEADLINES = {
    "sport": [
        "{place} wins the cup final after extra time",
        "Young runner from {place} breaks the marathon record",
        "Coach leaves {place} after fifth defeat in a row",
        "Injured keeper will miss the match in {place}",
    ],
    "science": [
        "Telescope near {place} finds a planet with water",
        "Researchers in {place} print a heart valve from cells",
        "New battery from {place} charges in four minutes",
        "Fossil found near {place} is older than the dinosaurs",
    ],
    "business": [
        "Shares in {place} fall as oil gets cheaper",
        "Car maker builds its next factory in {place}",
        "Bank of {place} raises interest rates again",
        "Start-up from {place} sells its one millionth bicycle",
    ],
    "health": [
        "Clinic in {place} tests a vaccine against malaria",
        "Doctors in {place} warn of a long season of flu",
        "Study from {place}: a walk a day keeps the heart young",
        "Hospital in {place} opens a ward for children",
    ],
}


def main() -> None:
    draw = random.Random(0)
    messages = [
        (topic, message(text, draw))
        for _ in range(400 // 18 + 1)
        for topic, texts in MESSAGES.items()
        for text in texts
    ]
    messages = list(dict.fromkeys(messages))[:400]
    draw.shuffle(messages)
    table("messages.csv", ["topic", "body"], messages[:150])
    headlines = [
        (topic, text.format(place=place))
        for topic, texts in HEADLINES.items()
        for text in texts
        for place in draw.sample(PLACES, 9)
    ]
    draw.shuffle(headlines)
    table("headlines.csv", ["topic", "title"], headlines)

    topics, texts = zip(*messages, strict=True)
    vectors = components(strata.encode_texts(list(texts)).x)
    columns = {"id": range(len(texts)), "body": texts, "topic": topics, "embedding": list(vectors)}
    pq.write_table(pa.table(columns), HERE / "messages.parquet", compression="zstd")
    database(columns, 150)

    rows = strata.Vectors(vectors, list(map(str, columns["id"])), list(texts))
    sae = strata.train(rows, latents=LATENTS, k=K, seed=1)
    strata.save(sae, HERE / "sae")


def message(text: str, draw: random.Random) -> str:
    middle = text.format(thing=draw.choice(THINGS), day=draw.choice(DAYS))
    return f"{draw.choice(WHO)}, {middle} {draw.choice(ENDS)}"


def table(name: str, columns: list[str], rows: list[tuple[str, str]]) -> None:
    with (HERE / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns, *rows])


def components(x: np.ndarray) -> np.ndarray:
    """The first principal components of each row: float32, of which few digits count, so that they can be packed."""
    centred = x - x.mean(0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:WIDTH]
    return (centred @ directions.T).astype(np.float16).astype(np.float32)


def database(columns: dict[str, Any], rows: int) -> None:
    """The first rows as a SQLite database, each embedding a BLOB of float32."""
    path = HERE / "messages.sqlite"
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("pragma page_size = 1024")
        connection.execute("create table messages (id integer primary key, body text, topic text, embedding blob)")
        for number in range(rows):
            vector = columns["embedding"][number].astype("<f4").tobytes()
            row = (number, columns["body"][number], columns["topic"][number], vector)
            connection.execute("insert into messages values (?, ?, ?, ?)", row)
    with sqlite3.connect(path) as connection:
        connection.execute("vacuum")


if __name__ == "__main__":
    main()
