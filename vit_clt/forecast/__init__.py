"""What a command will take on this machine, told before it starts: time and memory.

Time comes from a short trial (`trial`) and from the `work` that a study states in units of it;
memory from formulas, beside what the process has now (`memory`).
"""
