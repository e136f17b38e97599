() => {
    const node = document.activeElement;
    const by = document.getElementById(node.getAttribute("aria-labelledby"));
    const named = node.getAttribute("aria-label") ?? by?.textContent ?? node.labels?.[0]?.firstChild.textContent.trim();
    return node === document.body ? "body" : named || node.labels?.[0]?.textContent.trim() || node.textContent.trim();
}
