async () => {
    const load = (name) => import(`${document.baseURI}${name}.js`);
    const [events, history, histogram, layout, format] = await Promise.all(
        ["events", "history", "views/histogram", "layout", "format"].map(load));
    const found = [];
    const texts = (async function* () {
        yield* ["retry: 1\n\nid: 1\nda", "ta: one\n\ndata: two\ndata: lines\n", "\n"];
    })();
    for await (const data of events.eventsIn(texts)) found.push(data);
    const rates = new history.Rates();
    for (const [time_ms, records_in] of [[0, 10], [2000, 20], [3000, 10]]) {
        rates.add({ time_ms, operators: [{ uid: "a", records_in, records_out: 0 }] });
    }
    const nodes = ["a", "b", "c", "d"].map((uid) => ({ uid, name: uid, vertex: uid, parallelism: 1 }));
    const edges = ["ab", "bc", "ac", "bd"].map(([upstream, downstream]) => ({ upstream, downstream }));
    const placed = layout.place(layout.chains({ nodes, edges }), "right");
    return {
        events: found,
        rates: rates.of("a"),
        bars: histogram.barsOf([4, 0, 2]),
        depths: placed.boxes.map((box) => box.x),
        times: [0.25, 1.5, 125, 3660, -3].map(format.seconds),
        bytes: [10, 1536].map(format.bytes),
    };
}
