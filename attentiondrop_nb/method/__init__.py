"Part 1, the method: the equations of the paper as plain functions of feature maps."
