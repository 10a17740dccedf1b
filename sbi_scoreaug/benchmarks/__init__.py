"""One file a claim. `python -m sbi_scoreaug.benchmarks NAME` measures it again.

Every benchmark prints what it measured with seeds, spread, budget and its peers in the
same run, writes each cell to a CSV file as soon as it is finished, and goes on where it
was stopped. Results that the README quotes stand in `benchmarks/results/`.
"""

NAMES = {
    "keeping_score": "ScoreAugmentedNRE: how many simulations a score is worth",
    "scores_everywhere": "Every method: what an exact score buys",
    "score_npe": "ScoreNPE: sets of observations, exact scores to cost",
    "amortized_cost": "AmortizedCostEstimator: generalized posteriors, wrong models",
    "amortized_cost_hodgkin_huxley": "AmortizedCostEstimator: a neuron, against NPE",
    "overhead": "All trainers: time of a step and memory, against sbi's",
}
