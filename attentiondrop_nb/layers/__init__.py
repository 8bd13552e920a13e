"Part 2, the layers: modules for a network of your own, the methods beside AttentionDrop, and how to attach them."
