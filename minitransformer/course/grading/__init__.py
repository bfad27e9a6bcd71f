"""Grading of exercise notebooks, on the premise that what is graded may be hostile.

- notebook.py reads the learner's file, copy.py builds the grading copy from it.
- run.py takes one notebook from end to end; process.py starts nbval and watches it, conclude.py turns
  what is known into verdicts, report.py and command.py show them.
- sandbox.py shuts the kernels in; inside/ holds what runs there: jail, nbval, warm kernels.
- judge.py runs the check functions, out here; rpc.py answers them, in the kernel.
"""
