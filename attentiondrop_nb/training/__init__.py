"Part 3, training: data sets, the network, and one run that can be trusted."
