"""The commands: train, evaluate, study, report, distill."""
