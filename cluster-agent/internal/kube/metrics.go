// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/metrics"
)

// Metrics are what client-go tells of its requests and of the queues of its
// informers, under the names that Kubernetes' own programs use. There are no
// workqueues in this program, and so no figures of any.
type Metrics struct {
	requests, retries *prometheus.CounterVec
	latency           *prometheus.HistogramVec
	queued            *prometheus.GaugeVec
	processing        *prometheus.HistogramVec
}

// NewMetrics registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rest_client_requests_total", Help: "Requests to the API server; code is `<error>` where there was no answer.",
		}, []string{"code", "method", "host"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rest_client_request_retries_total", Help: "Requests that were sent again.",
		}, []string{"code", "verb", "host"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rest_client_request_duration_seconds", Help: "Time until the API server began to answer.",
			Buckets: []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60},
		}, []string{"verb", "host"}),
		queued: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "informer_queued_items", Help: "Events that a watch has brought and that are not in the cache yet.",
		}, []string{"resource"}),
		processing: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "informer_processing_latency_seconds", Help: "Time to put an event into the cache.",
			Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10),
		}, []string{"resource"}),
	}
	r.MustRegister(m.requests, m.retries, m.latency, m.queued, m.processing)
	return m
}

// install makes client-go tell m of requests. It has one place for that in a
// process; the first caller gets it.
func (m *Metrics) install() {
	metrics.Register(metrics.RegisterOpts{RequestResult: m, RequestRetry: m, RequestLatency: m})
}

// Increment implements metrics.ResultMetric.
func (m *Metrics) Increment(_ context.Context, code, method, host string) {
	m.requests.WithLabelValues(code, method, host).Inc()
}

// IncrementRetry implements metrics.RetryMetric.
func (m *Metrics) IncrementRetry(_ context.Context, code, verb, host string) {
	m.retries.WithLabelValues(code, verb, host).Inc()
}

// Observe implements metrics.LatencyMetric.
func (m *Metrics) Observe(_ context.Context, verb string, u url.URL, d time.Duration) {
	m.latency.WithLabelValues(verb, u.Host).Observe(d.Seconds())
}

// NewQueuedItemMetric implements cache.InformerMetricsProvider.
func (m *Metrics) NewQueuedItemMetric(id cache.InformerNameAndResource) cache.GaugeMetric {
	return m.queued.WithLabelValues(id.GroupVersionResource().Resource)
}

// NewProcessingLatencyMetric implements cache.InformerMetricsProvider.
func (m *Metrics) NewProcessingLatencyMetric(id cache.InformerNameAndResource) cache.HistogramMetric {
	return m.processing.WithLabelValues(id.GroupVersionResource().Resource)
}

// NewStoreResourceVersionMetric implements cache.InformerMetricsProvider. It is
// not shown: the version of a store says nothing by itself.
func (m *Metrics) NewStoreResourceVersionMetric(cache.InformerNameAndResource) cache.GaugeMetric {
	return prometheus.NewGauge(prometheus.GaugeOpts{})
}

// informerOptions returns the options of the informer of a resource.
func (a *Agent) informerOptions(resource schema.GroupVersionResource) cache.SharedIndexInformerOptions {
	if a.opts.Metrics == nil {
		return cache.SharedIndexInformerOptions{}
	}
	return cache.SharedIndexInformerOptions{Identifier: a.name.WithResource(resource), InformerMetricsProvider: a.opts.Metrics}
}

// useMetrics makes client-go tell the metrics, if there are any.
func (a *Agent) useMetrics() error {
	if a.opts.Metrics == nil {
		return nil
	}
	a.opts.Metrics.install()
	var err error
	// client-go wants a name that is unique in the process.
	if a.name, err = cache.NewInformerName(fmt.Sprintf("%s-%p", FieldManager, a)); err != nil {
		return fmt.Errorf("metrics of the informers: %w", err)
	}
	return nil
}
