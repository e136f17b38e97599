() => new Promise((done) => {
    const at = [];
    const seen = new MutationObserver(() => {
        at.push(performance.now());
        if (at.length < 6) return;
        seen.disconnect();
        done(at.slice(1).map((each, number) => each - at[number]));
    });
    const uptime = document.querySelector("#facts div:nth-child(2) dd");
    seen.observe(uptime, { childList: true, characterData: true, subtree: true });
})
