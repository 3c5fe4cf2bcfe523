// What several views need: elements, numbers as text, scales and ticks.

/** Make an HTML element. Attributes that begin with `on` are listeners; `text` is its text. */
export function html(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (name === "text") element.textContent = value;
        else if (value === true) element.setAttribute(name, "");
        else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name === "text") element.textContent = value;
        else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
}

/** Call a function with the width of an element, now and whenever it changes. */
export function whenSized(element, draw) {
    let last = 0;
    const look = () => {
        const width = Math.round(element.clientWidth);
        if (width && width !== last) draw((last = width));
    };
    new ResizeObserver(look).observe(element);
    look();
}

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const raise = (whole) => [...String(whole)].map((digit) => RAISED[digit]).join("");

/** Write a number with a few digits: 0.4, −1.25, 3.2·10⁻⁷. */
export function say(x, digits = 3) {
    if (x === null || x === undefined) return "";
    if (Number.isNaN(x)) return "NaN";
    if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
    const minus = x < 0 ? "−" : "";
    const size = Math.abs(x);
    if (size === 0) return "0";
    if (size >= 1e-3 && size < 1e5) return minus + String(Number(size.toPrecision(digits)));
    const [head, exponent] = size.toExponential(digits - 1).split("e");
    const trimmed = String(Number(head));
    return `${minus}${trimmed === "1" ? "" : `${trimmed}·`}10${raise(Number(exponent))}`;
}

/** Copy a text, and say on the button that it was done. */
export async function copyText(button, text) {
    const { textContent: name } = button;
    try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
    } catch {
        button.textContent = "Not allowed"; // by the browser
    }
    button.disabled = true;
    setTimeout(() => Object.assign(button, { textContent: name, disabled: false }), 1500);
}

// ---- Scales: from a value to 0 … 1, and the values to write at an axis ----

export function linearScale(low, high, parts = 3) {
    if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1), low + (Math.abs(low) || 1)];
    const rough = (high - low) / parts;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++)
        ticks.push(Number((k * step).toPrecision(12)));
    return { at: (x) => (x - low) / (high - low), ticks };
}

export function logScale(low, high) {
    let [first, last] = [Math.log10(low), Math.log10(high)];
    if (!(last - first > 1)) [first, last] = [(first + last) / 2 - 0.6, (first + last) / 2 + 0.6];
    const every = Math.max(1, Math.ceil((last - first) / 4));
    const ticks = [];
    for (let k = Math.floor(first); k <= last + 1e-9; k++) {
        if (k % every !== 0) continue;
        for (const digit of last - first > 2.5 ? [1] : last - first > 1.5 ? [1, 3] : [1, 2, 5])
            ticks.push(Number(`${digit}e${k}`));
    }
    const at = (x) => (x > 0 ? (Math.log10(x) - first) / (last - first) : -0.2);
    return { at, ticks: ticks.filter((x) => at(x) >= -1e-9 && at(x) <= 1 + 1e-9) };
}

/** Both signs and many sizes: linear up to `small`, logarithmic beyond. */
export function signedLogScale(low, high, small) {
    const bend = (x) => Math.asinh(x / small);
    const [first, last] = [bend(low), bend(high)];
    const sizes = [];
    const top = Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high))));
    const bottom = Math.ceil(Math.log10(small));
    const every = Math.max(1, Math.ceil((top - bottom) / 3));
    for (let k = top; k > bottom; k -= every) sizes.push(10 ** k);
    const ticks = [...sizes.map((x) => -x), 0, ...sizes].filter((x) => x >= low && x <= high);
    return { at: (x) => (bend(x) - first) / (last - first), ticks };
}
