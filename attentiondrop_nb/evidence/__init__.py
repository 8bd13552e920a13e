"Part 4, the evidence: looking inside, statistics, tables, figures, and many runs."
