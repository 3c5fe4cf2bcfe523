// Things to try. Each is an address of this page, as the page itself would write it, and what one sees there.

export const STORIES = [
    {
        title: "The ravine",
        address: "",
        text:
            "The gradient of x₂ is at first eight times that of x₁. The first steps are equal: each is η/√(1−β) " +
            "= 1.26 long.",
    },
    {
        title: "Turned by 45°",
        address: "angle=45",
        text:
            "RMSProp looks at each coordinate alone. Now both have gradients of about the same size, and " +
            "dividing helps much less: after 20 steps the loss is 0.17, not 0.00001.",
    },
    {
        title: "β = 1",
        address: "beta=1",
        text:
            "v stays at 0, so that ε alone divides: a step is η·g/ε, a hundred million times too long. β " +
            "must be below 1.",
    },
    {
        title: "Large ε",
        address: "eps=1",
        text: "Where √v is smaller than ε, RMSProp turns into gradient descent with the rate η/ε.",
    },
    {
        title: "v starts at 1",
        address: "dialect=tf1",
        text: "TensorFlow 1 starts v at 1, not at 0. Where gradients are small, the first steps are " + "smaller, too.",
    },
    {
        title: "Momentum",
        address: "lr=0.1&momentum=0.7",
        text: "Momentum adds up the last steps. A quarter of the rate is enough, but the path overshoots.",
    },
    {
        title: "A saddle",
        address: "landscape=saddle",
        text:
            "SGD stays on the ridge for a long time. RMSProp divides a tiny gradient by its own tiny " +
            "size, and leaves at once.",
    },
    {
        title: "Noise",
        address: "landscape=noisy",
        text:
            "Near the minimum the steps stay as long as before, because √v measures the noise. A " +
            "smaller η calms them.",
    },
    {
        title: "A moving valley",
        address: "landscape=moving",
        text: "AdaGrad adds up all g², so that its steps only shrink. RMSProp forgets, and follows.",
    },
    {
        title: "A spike of 1000",
        address: "landscape=moving&spikes=60",
        text:
            "The spike moves each coordinate by η/√(1−β) at most. But v remembers it, and for about 80 steps nearly " +
            "nothing moves.",
    },
    {
        title: "The spike, clipped",
        address: "landscape=moving&clip_value=3&spikes=60",
        text:
            "With each |g| limited to 3, the spike is a gradient like others, and RMSProp goes on. The " +
            "others are not clipped.",
    },
];
