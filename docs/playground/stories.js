// Things to try. Each is an address of this page, as the page itself would write it.

export const STORIES = [
    { title: "The ravine", address: "" },
    { title: "Turn it by 45°", address: "angle=45" },
    { title: "Remember all: β = 1", address: "beta=1" },
    { title: "A large ε", address: "eps=1" },
    { title: "v starts at 1", address: "dialect=tf1" },
    { title: "With momentum", address: "lr=0.1&momentum=0.7" },
    { title: "Leave a saddle", address: "landscape=saddle" },
    { title: "Noise", address: "landscape=noisy" },
    { title: "Follow a moving valley", address: "landscape=moving" },
    { title: "One gradient of 1000", address: "landscape=moving&spikes=60" },
];
