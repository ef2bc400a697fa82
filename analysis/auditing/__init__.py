"""Is an attribution to be believed? `audit` collects the evidence and says so by a stated rule.

`evidence` and `diagnostics` measure, `rivals`, `ridge` and `controls` are what a CLT is held
against.
"""
