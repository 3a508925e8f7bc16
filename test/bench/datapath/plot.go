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
	panelWidth  = 13 * vg.Centimeter
	panelHeight = 9.5 * vg.Centimeter
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

// Plot draws the rows as <base>.svg and <base>.png, under a caption: a panel for
// each metric that was measured, tenants on the x axis, 1.0 for plain forwarding.
func Plot(rows []Row, base, caption string) error {
	panels, err := arrange(rows)
	if err != nil {
		return err
	}
	tiles := draw.Tiles{Rows: len(panels), Cols: len(panels[0]), PadX: vg.Centimeter, PadY: vg.Centimeter,
		PadTop: 1.5 * vg.Centimeter, PadBottom: vg.Centimeter / 2, PadLeft: vg.Centimeter / 2, PadRight: vg.Centimeter / 2}
	w, h := vg.Length(tiles.Cols)*panelWidth, vg.Length(tiles.Rows)*panelHeight
	svg, png := vgsvg.New(w, h), vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(w, h), vgimg.UseDPI(110))}
	for _, c := range []vg.CanvasSizer{svg, png} {
		d := draw.New(c)
		title := panels[0][0].Title.TextStyle
		title.XAlign, title.YAlign = draw.XCenter, draw.YCenter
		d.FillText(title, vg.Point{X: d.Center().X, Y: d.Max.Y - 0.7*vg.Centimeter}, caption)
		canvases := plot.Align(panels, tiles, d)
		for r := range panels {
			for c, p := range panels[r] {
				if p != nil {
					p.Draw(canvases[r][c])
				}
			}
		}
	}
	if err := writeFile(base+".svg", svg.WriteTo); err != nil {
		return err
	}
	return writeFile(base+".png", png.WriteTo)
}

// arrange draws the panels in rows of two; where the last one is alone, nil stands beside it.
// The first has the legend.
func arrange(rows []Row) ([][]*plot.Plot, error) {
	var out [][]*plot.Plot
	for _, metric := range Metrics() {
		if !slices.ContainsFunc(rows, func(r Row) bool { return r.Metric == metric }) {
			continue
		}
		p, err := panel(rows, metric, len(out) == 0)
		if err != nil {
			return nil, err
		}
		if last := len(out) - 1; last >= 0 && len(out[last]) == 1 {
			out[last] = append(out[last], p)
		} else {
			out = append(out, []*plot.Plot{p})
		}
	}
	switch n := len(out); {
	case n == 0:
		return nil, errors.New("nothing was measured that could be drawn")
	case n > 1 && len(out[n-1]) == 1:
		out[n-1] = append(out[n-1], nil)
	}
	return out, nil
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
	for _, l := range []struct {
		name   string
		at     float64
		color  color.Color
		dashes []vg.Length
	}{
		{"plain forwarding", 1, color.Gray{110}, []vg.Length{vg.Points(4), vg.Points(3)}},
		{fmt.Sprintf("aim at %d tenants", MaxTenants), Aims()[metric], color.RGBA{0x1b, 0x6c, 0xa8, 0xff}, []vg.Length{vg.Points(1), vg.Points(3)}},
	} {
		line, err := plotter.NewLine(plotter.XYs{{X: first, Y: l.at}, {X: last, Y: l.at}})
		if err != nil {
			return nil, err
		}
		line.Color, line.Dashes = l.color, l.dashes
		p.Add(line)
		if legend {
			p.Legend.Add(l.name, line)
		}
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
