r"""The named diffusions: each is two curves, written in the form that does not cancel.

| class | alpha | sigma | log_snr |
|---|---|---|---|
| VPSDE | e^{-B/2} | sqrt(1 - e^{-B}) | -B - log(1 - e^{-B}) |
| SubVPSDE | e^{-B/2} | 1 - e^{-B} | -2 log(2 sinh(B/2)) |
| VESDE | 1 | s_min (s_max/s_min)^t | -2 log sigma |
| CosineVPSDE | cos(theta_t)/cos(theta_0) | sqrt(1 - alpha^2) | log(alpha^2/sigma^2) |
| EDMSDE | 1 | t | -2 log t |
| RectifiedFlow | 1 - t | t | 2 log((1 - t)/t) |
| LearnedSchedule | sqrt(s(log_snr)) | sqrt(s(-log_snr)) | a monotone network of t; s is the logistic function |

B(t) is the integral of beta, beta(t) = beta_min + t (beta_max - beta_min). Conventions where the literature disagrees:

* VE at t = 0: here sigma(0) = sigma_min, so that x_t = x_0 + sigma(t) z. Song et al. write the transition from t = 0
  with the variance sigma(t)^2 - sigma_min^2 and then use sigma(t) for the marginal, as here.
* ``log_snr`` is log(alpha^2/sigma^2); papers on fast solvers call half of it lambda.
* The number of steps belongs to a time grid, never to an SDE.
"""
