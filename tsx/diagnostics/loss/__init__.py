"""The loss: what it is given, where it starts, leaps and stands.

contract    losses given probabilities where they take logits
reach       predictions and targets that cannot meet
squashes    what bounds a tensor on its way to the loss
first_loss  the first loss against what knows nothing
plateaus    a loss that stands
spikes      a loss that leaps
overfit     a batch that is repeated on purpose
memorise    the verdict on it
"""
