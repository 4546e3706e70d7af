"""Every way of learning on, judged by one harness: (scenario x strategy x seed).

`scenarios.SCENARIOS` says what is met and how it is judged, `catalogue.STRATEGIES` who learns,
`journey` walks one learner through one sequence, `run` does all of them in processes, and
`results` makes tables with intervals of what they found.
"""
