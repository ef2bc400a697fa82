"""What happens when features are turned up or down: `steering_curve` and `steering_search`.

`versions` are the edits and their random controls, `readings` what is read from the answers.
"""
