"""The check functions of the exercises: exNN.py holds those of exercise NN, one function a task."""
