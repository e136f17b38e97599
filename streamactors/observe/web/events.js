// Server-sent events out of the text of an answer. The browser's own reader of them can't send the token's header.

/** The data of each event, as it comes. `texts`: pieces of any length. */
export async function* eventsIn(texts) {
  let rest = "";
  for await (const text of texts) {
    const events = (rest + text).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = dataOf(event);
      if (data !== "") yield data;
    }
  }
}

function dataOf(event) {
  const lines = event.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}
