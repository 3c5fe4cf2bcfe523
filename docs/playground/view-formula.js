// The step that the page shows, line by line: the formula, and for each coordinate the same with its numbers.

import { divisorText } from "./view-charts.js";
import { html, say } from "./view-parts.js";

/** The lines of a step: what is computed, by which formula, with which numbers, and why. */
function lines(state, record, raw) {
    const { lr, beta, eps, momentum: mu, centered, bias_correction: corrected, eps_inside_sqrt: inside } = state;
    const nesterov = state.nesterov && mu !== 0;
    const { before, after, g, variance, root } = record;
    const n = (x) => (x < 0 ? `(${say(x, 4)})` : say(x, 4));
    const fresh = 1 - beta;
    const b = say(beta, 6);
    const f = say(Number(fresh.toPrecision(12)), 6);
    const all = [];
    const add = (result, formula, text, why) => all.push({ result, formula, text, why });

    if (state.clip_value !== null) {
        add(
            (i) => g[i],
            "g ← g between −c and c",
            (i) => `${say(raw[i], 4)} between ±${say(state.clip_value)}`,
            "The clip limits the gradient.",
        );
    } else {
        add(
            (i) => g[i],
            "g",
            () => "",
            "The gradient at this point.",
        );
    }
    const kept = `${say(Number((100 * beta).toPrecision(6)), 5)} %`;
    add(
        (i) => after.v[i],
        "v ← β·v + (1−β)·g²",
        (i) => `${b}·${say(before.v[i], 4)} + ${f}·${n(g[i])}²`,
        `The average of g². It keeps ${kept} of itself.`,
    );
    if (centered)
        add(
            (i) => after.m[i],
            "m ← β·m + (1−β)·g",
            (i) => `${b}·${n(before.m[i])} + ${f}·${n(g[i])}`,
            "The average of g.",
        );
    const v = corrected ? "v̂" : "v";
    if (corrected) {
        add(
            (i) => after.v[i] * record.correction,
            "v̂ ← v / (1 − βᵗ)",
            (i) => `${say(after.v[i], 4)} · ${say(record.correction, 4)}`,
            "In the first steps, v still lacks what came before.",
        );
        if (centered)
            add(
                (i) => after.m[i] * record.correction,
                "m̂ ← m / (1 − βᵗ)",
                (i) => `${say(after.m[i], 4)} · ${say(record.correction, 4)}`,
                "The same for m.",
            );
    }
    const under = (i) =>
        centered
            ? `${say(after.v[i] * record.correction, 4)} − ${n(after.m[i] * record.correction)}²`
            : say(variance[i], 4);
    add(
        (i) => root[i],
        `d ← ${divisorText(state)}`,
        (i) =>
            inside ? `√(${under(i)} + ${say(eps)})` : `${centered ? `√(${under(i)})` : `√${under(i)}`} + ${say(eps)}`,
        inside
            ? "The divisor. Below the root, ε counts as √ε."
            : `The divisor: the recent size of g${centered ? ", less its mean" : ""}.`,
    );
    if (mu === 0) {
        add(
            (i) => after.w[i],
            "x ← x − η·g / d",
            (i) => `${say(before.w[i], 4)} − ${say(lr, 4)}·${n(g[i])} / ${say(root[i], 4)}`,
            "The step: η times g over its recent size.",
        );
        return all;
    }
    const quotient = (i) =>
        state.lr_in_momentum ? `${say(lr, 4)}·${n(g[i])} / ${say(root[i], 4)}` : `${n(g[i])} / ${say(root[i], 4)}`;
    const q = state.lr_in_momentum ? "η·g / d" : "g / d";
    const m = say(mu, 4);
    add(
        (i) => after.b[i],
        `b ← μ·b + ${q}`,
        (i) => `${m}·${n(before.b[i])} + ${quotient(i)}`,
        "The buffer adds up the last steps.",
    );
    const inner = nesterov ? `(${q} + μ·b)` : "b";
    const numbers = (i) => (nesterov ? `(${quotient(i)} + ${m}·${n(after.b[i])})` : n(after.b[i]));
    add(
        (i) => after.w[i],
        `x ← x − ${state.lr_in_momentum ? "" : "η·"}${inner}`,
        (i) => `${say(before.w[i], 4)} − ${state.lr_in_momentum ? "" : `${say(lr, 4)}·`}${numbers(i)}`,
        nesterov ? "Nesterov looks one step ahead." : "The step.",
    );
    return all;
}

export function createFormula(root) {
    return {
        render({ state, result }, raw) {
            const record = result.racers.rmsprop.records[state.step];
            if (!record) {
                const text =
                    state.step === 0
                        ? "No step has been taken yet. Press “One step”."
                        : "RMSProp got lost before this step: its numbers overflowed.";
                root.replaceChildren(html("p", { class: "hint", text }));
                return;
            }
            const spiked = state.spikes.includes(state.step);
            const spike = spiked ? `: its gradient has a spike of ${say(state.spike)}` : "";
            const head = html("p", { class: "which", text: `Step ${state.step} of ${state.steps}${spike}.` });
            const table = html(
                "table",
                {},
                html(
                    "thead",
                    {},
                    html(
                        "tr",
                        {},
                        html("th", { scope: "col", text: "RMSProp computes" }),
                        html("th", { scope: "col", text: "x₁" }),
                        html("th", { scope: "col", text: "x₂" }),
                    ),
                ),
            );
            const body = html("tbody");
            for (const { result: value, formula, text, why } of lines(state, record, raw)) {
                const cells = [0, 1].map((i) =>
                    html(
                        "td",
                        { "data-name": ["x₁", "x₂"][i] },
                        text(i) ? html("span", { class: "work", text: `${text(i)} = ` }) : "",
                        html("b", { text: say(value(i), 5) }),
                    ),
                );
                body.append(
                    html(
                        "tr",
                        {},
                        html(
                            "th",
                            { scope: "row" },
                            html("span", { class: "formula", text: formula }),
                            html("span", { class: "words", text: why }),
                        ),
                        ...cells,
                    ),
                );
            }
            table.append(body);
            root.replaceChildren(head, table);
        },
    };
}
