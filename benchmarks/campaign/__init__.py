"""The campaign: what it throws at the program, and how it knows that something is wrong.

    command    options, the loop over kinds in time slices, progress
    state      counts and findings on disk; a killed campaign resumes from there
    verdicts   what counts as a finding
    findings   one directory a finding: the minimised input, its output, how to replay it
    child      a forked child with its output in files, a time limit and its peak memory
    sandbox    many inputs a second in forked workers
    minimise   the smallest input with the same fault
    mutate_*   bytes, JSON, mp4 boxes, protobuf messages
    corpus     the valid files that are mutated
    server     a server under test and a client that sends any bytes
    kinds/     one file a kind: where inputs come from, what is called with them, what must be true afterwards
    report     the tables

Every input follows from (seed, kind, index), so `KIND:INDEX` names it.
"""
