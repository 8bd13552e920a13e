"Part 5, speed: how the layer got fast, and where the time of training goes."
