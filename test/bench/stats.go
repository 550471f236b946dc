package main

import (
	"math/rand/v2"
	"slices"
)

// An estimate is what samples say of a figure, and between which bounds it would
// be in 95 of 100 runs like this one: the percentiles of a bootstrap.
type estimate struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

const resamples = 2000

// quantile is the q-quantile of values, 0 to 1, between the two that are nearest.
// Of no values it is 0.
func quantile[T ~int64 | ~float64](values []T, q float64) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	below := int(at)
	if below+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[below] + T((at-float64(below))*float64(sorted[below+1]-sorted[below]))
}

func median(values []float64) float64 { return quantile(values, 0.5) }

func mean(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// ratio is statistic(a) over statistic(b). Samples that were taken by turns, and so
// are of the same number, are drawn in pairs: what a round of both has in common,
// such as a machine that is slow for a while, is none of the ratio's noise.
func ratio(a, b []float64, statistic func([]float64) float64) estimate {
	return bootstrap(a, b, func(a, b []float64) float64 {
		if base := statistic(b); base != 0 {
			return statistic(a) / base
		}
		return 0
	})
}

// of is a statistic of one sample.
func of(values []float64, statistic func([]float64) float64) estimate {
	return bootstrap(values, nil, func(a, _ []float64) float64 { return statistic(a) })
}

// bootstrap draws both samples anew, with the same random numbers in every run.
func bootstrap(a, b []float64, statistic func(a, b []float64) float64) estimate {
	e := estimate{Value: statistic(a, b)}
	random := rand.New(rand.NewPCG(uint64(len(a)), uint64(len(b))))
	drawnA, drawnB := make([]float64, len(a)), make([]float64, len(b))
	values := make([]float64, resamples)
	for i := range values {
		for j := range drawnA {
			k := random.IntN(len(a))
			drawnA[j] = a[k]
			if len(a) == len(b) {
				drawnB[j] = b[k]
			}
		}
		for j := range drawnB {
			if len(a) != len(b) {
				drawnB[j] = b[random.IntN(len(b))]
			}
		}
		values[i] = statistic(drawnA, drawnB)
	}
	e.Low, e.High = quantile(values, 0.025), quantile(values, 0.975)
	return e
}
