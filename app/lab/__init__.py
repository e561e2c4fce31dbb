"""The lab: a synthetic world to train and measure with. It knows the truth; models see pictures only."""
