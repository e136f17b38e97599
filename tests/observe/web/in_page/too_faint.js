() => {
    const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
    const light = (part) => (part / 255 <= 0.03928 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
    const ground = (node) => {
        const colour = parts(getComputedStyle(node).backgroundColor);
        return colour.length === 4 && colour[3] === 0 && node.parentElement ? ground(node.parentElement) : colour;
    };
    const colourOf = (node) => {
        if (!(node instanceof SVGElement)) return [getComputedStyle(node).color, ground(node)];
        const frame = node.closest(".box")?.querySelector(".frame");
        return [getComputedStyle(node).fill, frame ? parts(getComputedStyle(frame).fill) : ground(node.closest("section"))];
    };
    const told = [...document.querySelectorAll("body *")].filter((node) =>
        node.checkVisibility() && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim() !== ""));
    return told.map((node) => {
        const [colour, below] = colourOf(node);
        const [one, other] = [luminance(parts(colour)), luminance(below)];
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        return contrast < 4.5 ? `${node.tagName} ${node.className} ${node.textContent}: ${contrast}` : null;
    }).filter(Boolean);
}
