// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"image/color"
	"io"
	"os"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	width  = 26 * vg.Centimeter
	height = 18 * vg.Centimeter
)

// titles say what a panel shows.
func titles() map[string]string {
	return map[string]string{
		Established: "established UDP flows, 64-byte packets, both ways",
		NewUDP:      "new UDP flows",
		TCP:         "TCP connections: open, one byte, close",
		Bulk:        "one TCP stream",
	}
}

// Plot draws the rows as <base>.svg and <base>.png: a panel for each metric,
// tenants on the x axis, and 1.0 for plain forwarding.
func Plot(rows []Row, base string) error {
	panels := make([][]*plot.Plot, 2)
	for i, metric := range Metrics() {
		p, err := panel(rows, metric, i == 0)
		if err != nil {
			return err
		}
		panels[i/2] = append(panels[i/2], p)
	}
	svg, png := vgsvg.New(width, height), vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(110))}
	for _, c := range []vg.CanvasSizer{svg, png} {
		d := draw.New(c)
		tiles := draw.Tiles{Rows: 2, Cols: 2, PadX: vg.Centimeter, PadY: vg.Centimeter,
			PadTop: vg.Centimeter / 2, PadBottom: vg.Centimeter / 2, PadLeft: vg.Centimeter / 2, PadRight: vg.Centimeter / 2}
		canvases := plot.Align(panels, tiles, d)
		for r := range panels {
			for c, p := range panels[r] {
				p.Draw(canvases[r][c])
			}
		}
	}
	if err := writeFile(base+".svg", svg.WriteTo); err != nil {
		return err
	}
	return writeFile(base+".png", png.WriteTo)
}

func panel(rows []Row, metric string, legend bool) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = titles()[metric]
	p.Title.Padding = vg.Points(6)
	p.X.Label.Text, p.Y.Label.Text = "tenants", "ratio to plain forwarding"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, counts(rows)
	p.Y.Min, p.Y.Max = 0, 1.15
	p.Y.Tick.Marker = plot.ConstantTicks(fifths())
	p.X.Padding, p.Y.Padding = 0, 0
	p.Add(plotter.NewGrid())
	first, last := span(rows)
	p.X.Min, p.X.Max = first, last
	one, err := plotter.NewLine(plotter.XYs{{X: first, Y: 1}, {X: last, Y: 1}})
	if err != nil {
		return nil, err
	}
	one.Color, one.Dashes = color.Gray{110}, []vg.Length{vg.Points(4), vg.Points(3)}
	p.Add(one)
	if legend {
		p.Legend.Add("plain forwarding", one)
	}
	for _, s := range []struct {
		rules, name string
		color       color.Color
		shape       draw.GlyphDrawer
	}{
		{Ours, "egress-gateway", color.RGBA{0x1b, 0x6c, 0xa8, 0xff}, draw.CircleGlyph{}},
		{Unguarded, "egress-gateway without its guards", color.RGBA{0x6b, 0x8e, 0x23, 0xff}, draw.SquareGlyph{}},
		{Linear, "one rule after the other", color.RGBA{0xc8, 0x50, 0x2d, 0xff}, draw.TriangleGlyph{}},
	} {
		points := pick(rows, s.rules, metric)
		if len(points) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = s.color, vg.Points(1.6)
		dots.Color, dots.Shape, dots.Radius = s.color, s.shape, vg.Points(3)
		p.Add(line, dots)
		if legend {
			p.Legend.Add(s.name, line, dots)
		}
	}
	p.Legend.Left, p.Legend.XOffs, p.Legend.YOffs, p.Legend.Padding = true, vg.Points(8), vg.Points(8), vg.Points(2)
	return p, nil
}

func pick(rows []Row, rules, metric string) plotter.XYs {
	var out plotter.XYs
	for _, r := range rows {
		if r.Rules == rules && r.Metric == metric {
			out = append(out, plotter.XY{X: float64(r.Tenants), Y: r.Ratio})
		}
	}
	slices.SortFunc(out, func(a, b plotter.XY) int { return int(a.X - b.X) })
	return out
}

// counts are the ticks: the numbers of tenants that were measured.
func counts(rows []Row) plot.ConstantTicks {
	var out plot.ConstantTicks
	seen := make(map[int]bool)
	for _, r := range rows {
		if !seen[r.Tenants] {
			seen[r.Tenants] = true
			out = append(out, plot.Tick{Value: float64(r.Tenants), Label: strconv.Itoa(r.Tenants)})
		}
	}
	return out
}

func fifths() []plot.Tick {
	var out []plot.Tick
	for i := range 6 {
		v := float64(i) / 5
		out = append(out, plot.Tick{Value: v, Label: fmt.Sprintf("%.1f", v)})
	}
	return out
}

// span is the range of the x axis, a little wider than what was measured.
func span(rows []Row) (first, last float64) {
	first, last = 4000, 1
	for _, r := range rows {
		first, last = min(first, float64(r.Tenants)), max(last, float64(r.Tenants))
	}
	return first * 0.8, last * 1.25
}

func writeFile(path string, write func(io.Writer) (int64, error)) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = write(f)
	return errors.Join(err, f.Close())
}
