// The run of RMSProp as a Python program that anybody can start, with the result that it prints.

import { asDialect } from "./dialects.js";
import { SETTINGS } from "./optimizers.js";
import { defaults, settingsOf } from "./state.js";
import { copyText, html } from "./view-parts.js";

const literal = (value) => ({ true: "True", false: "False", null: "None" })[value] ?? String(value);

function call(state) {
    const settings = settingsOf(state);
    const write = (values) =>
        Object.entries(values)
            .map(([name, value]) => `${name}=${literal(value)}`)
            .join(", ");
    if (state.dialect) {
        const args = write(asDialect(state.dialect, settings, defaults()));
        return `rmsfast.RMSProp(w, **rmsfast.dialects.${state.dialect}(${args}))`;
    }
    const changed = Object.entries(settings).filter(([name, value]) => value !== SETTINGS[name].default);
    return `rmsfast.RMSProp(w${changed.length ? ", " : ""}${write(Object.fromEntries(changed))})`;
}

/** Return the program that takes the steps up to the one that the page shows. */
export function program({ state, result }) {
    const spikes = state.spikes.filter((step) => step <= state.step);
    const take = spikes.length
        ? "    g = gradient(w, t)\n" +
          `    if t + 1 in [${spikes.join(", ")}]:\n        g += ${pythonFloat(state.spike)}\n    opt.step(g)\n`
        : "    opt.step(gradient(w, t))\n";
    return (
        `import numpy as np\nimport rmsfast\n\n${result.terrain.python()}\n\n` +
        `w = np.array([${pythonFloat(state.x1)}, ${pythonFloat(state.x2)}])\n` +
        `opt = ${call(state)}\n` +
        `for t in range(${state.step}):\n` +
        take +
        "print(*w)\n"
    );
}

const pythonFloat = (x) => (Number.isInteger(x) && Math.abs(x) < 1e15 ? x.toFixed(1) : String(x));

export function createPython(root, text) {
    const code = html("code");
    const copy = html("button", {
        type: "button",
        id: "copy-code",
        text: "Copy",
        onclick: () => copyText(copy, code.textContent),
    });
    copy.hidden = !navigator.clipboard;
    const prints = html("output", { id: "prints" });
    root.append(
        html("div", { class: "code" }, copy, html("pre", { tabindex: 0, "aria-label": "Python program" }, code)),
        html("p", {}, "It prints ", prints),
    );
    text.textContent =
        "This program takes with rmsfast the steps that the map shows. It prints where they end, with the same digits.";
    return {
        render(model) {
            const { path } = model.result.racers.rmsprop;
            code.textContent = program(model);
            const w = path[model.state.step];
            prints.textContent = w ? w.map(pythonPrint).join(" ") : "numbers that are not finite.";
        },
    };
}

/** A double as Python's print writes it: the shortest digits that give it back. */
export function pythonPrint(x) {
    if (Object.is(x, -0)) return "-0.0";
    const [head, exponent] = x.toExponential().split("e");
    const power = Number(exponent);
    if (x !== 0 && (power < -4 || power >= 16))
        return `${head}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
    return Number.isInteger(x) ? `${x}.0` : plainDigits(x);
}

/** A double without an exponent. */
function plainDigits(x) {
    const text = String(x);
    return text.includes("e") ? x.toFixed(20).replace(/0+$/, "") : text;
}
